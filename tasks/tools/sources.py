"""Where `fetch` finds files: a folder, s3://bucket/prefix, or hf://owner/name@revision on the hub
at HF_ENDPOINT.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gdpo.errors import one_line
from gdpo.walk import walk


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    files: names relative to the model folder, with the SHA-256 if the source states it, else None.
    read: downloads the file of a name to a path.
    """

    files: dict[str, str | None]
    read: Callable[[str, Path], object]


def listing(source: str) -> Listing:
    """The files of a source. ValueError or OSError if it does not exist or does not answer."""
    if source.startswith("hf://"):
        return _hub(*source.removeprefix("hf://").split("@"))
    if source.startswith("s3://"):
        from tasks.store.s3 import Store

        store = Store.at(source)
        return Listing(dict.fromkeys(store.keys()), store.download)
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError("no such folder")
    files = [str(path.relative_to(folder)) for path in walk(folder).files]
    return Listing(dict.fromkeys(files), lambda name, path: shutil.copyfile(folder / name, path))


def _hub(repository: str, commit: str) -> Listing:
    from huggingface_hub import HfApi

    # Read here, because the library reads it only once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT")

    def read(name: str, path: Path) -> None:
        cache = path.parent / ".hub"
        with online():
            got = HfApi(endpoint).hf_hub_download(
                repository, name, revision=commit, local_dir=cache
            )
        os.replace(got, path)
        shutil.rmtree(cache)

    with online():
        tree = HfApi(endpoint).list_repo_tree(repository, revision=commit, recursive=True)
        files = {
            entry.path: getattr(entry, "lfs", None) for entry in tree if hasattr(entry, "size")
        }
    return Listing({name: lfs.sha256 if lfs else None for name, lfs in files.items()}, read)


@contextmanager
def online() -> Iterator[None]:
    """Let the hub's library go online, and turn its errors into OSError.

    The command line sets HF_HUB_OFFLINE for every command.
    """
    from huggingface_hub import constants

    # Of the HTTP library that the hub's own uses, whichever that is in its version.
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    except (HTTPError, EntryNotFoundError) as error:
        raise OSError(one_line(error)) from error
    finally:
        constants.HF_HUB_OFFLINE = before
