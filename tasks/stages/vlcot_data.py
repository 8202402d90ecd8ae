"""Stage `vlcot-data`: training pairs as chains of thought -> data/vlcot/<part>.

    python -m tasks vlcot-data --part 00     one part, on any worker; without --part all in turn

Words of the degradation from the drawn parameters of the pair, captions and tags from its HR
pixels (tags from the shards where degrade.tags stored them), codes from the tokenizer
(tasks/files/chains.py has the format). Finished chunks stay in work/vlcot-data/<part>/chunks until
the part is whole.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair, Shards
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.items import ItemStore
from gdpo.vlcot.describe import Understanding, describe
from gdpo.vlcot.examples import example
from gdpo.vlcot.folder import load_tokenizer, vocabulary_of
from tasks import paths
from tasks.files.chains import FOLDER, schema, to_row
from tasks.run.fingerprint import inputs_of
from tasks.run.training import device
from tasks.run.vlcot import made_from

CHUNK = 64  # pairs


def run(config: Config, root: Path, hooks: Hooks, part: str | None = None) -> None:
    """Make the chains of `part`, or of every part of the shards in turn if None.

    Raises `Stopped` after a chunk. Errors: ValueError naming the folder, key or pair.
    """
    shards = root / paths.TRAIN
    known = sorted(path.name for path in shards.glob("*") if path.is_dir())
    if part is None and not known:
        raise ValueError(f"{shards}: no parts here; run the degrade stage")
    for name in known if part is None else [part]:
        _part(config, root, hooks, name)


def _part(config: Config, root: Path, hooks: Hooks, part: str) -> None:
    pairs = Shards(root / paths.TRAIN / part)
    described = schema(made_from(config, root))
    values = {
        "vlcot.ranges": config.vlcot.ranges,
        "tokenizer": made_from(config, root),
        "pairs": pairs.fingerprint(),
    }
    work = paths.work(root, "vlcot-data", part) / "chunks"
    store = ItemStore(work, inputs_of(__name__, values), "*.parquet")
    store.open()
    to_chain = _to_chain(config, root)
    names = []
    for first in range(0, len(pairs), CHUNK):
        name = f"{first:08d}.parquet"
        names.append(name)
        # Read and not only looked for: a page whose bytes have changed since is made again.
        is_new = not _is_whole(store.path(name))
        if is_new:
            rows = [to_chain(pairs[i]) for i in range(first, min(first + CHUNK, len(pairs)))]
            with store.write(name) as aside:
                table = pa.Table.from_pylist(rows, schema=described)
                pq.write_table(table, aside, write_page_checksum=True)
        done = min(first + CHUNK, len(pairs))
        hooks.log(done - 1, {"of": len(pairs)})
        if is_new and hooks.should_stop():
            raise Stopped(done)
    with written_aside(root / FOLDER / part) as aside:
        aside.mkdir()
        table = pa.concat_tables([pq.read_table(store.path(name)) for name in names])
        pq.write_table(
            table.replace_schema_metadata(described.metadata),
            aside / "00000.parquet",
            compression="zstd",
            write_page_checksum=True,
        )
    store.remove()


def _is_whole(path: Path) -> bool:
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return True


def _to_chain(config: Config, root: Path) -> Callable[[Pair], dict[str, Any]]:
    """The function that makes a pair's row; the tokenizer is loaded when it is first called."""

    @cache
    def loaded() -> tuple[Any, Any]:
        tokenizer = load_tokenizer(root / paths.TOKENIZER).to(device())
        return tokenizer, vocabulary_of(tokenizer, config.vlcot.stages, config.vlcot.prompt_side)

    def of(pair: Pair) -> dict[str, Any]:
        tokenizer, vocabulary = loaded()
        understanding = _understood(pair)
        one = example(pair, understanding, vocabulary, tokenizer, config.vlcot.ranges)
        return to_row(one, understanding)

    return of


def _understood(pair: Pair) -> Understanding:
    """Captions from pixels; the pair's own tags if it has any stored, be they none."""
    understanding = describe(pair.hr)
    if pair.tags is None:
        return understanding
    tags = tuple(tag.strip() for tag in pair.tags.split(",") if tag.strip())
    return Understanding(understanding.rough, understanding.middle, understanding.final, tags)
