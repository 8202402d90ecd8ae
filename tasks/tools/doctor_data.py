"""The data checks of `doctor`: do the photographs exist; are the shards undamaged (`--shards`)?"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from gdpo.config import Config
from gdpo.data.rows import damages
from gdpo.data.shards import shard_files
from gdpo.data.sources import Split
from gdpo.files import here_or_shipped, shipped
from tasks.files.photographs import listed
from tasks.tools.artefact import FOUND, MISSING, Artefact

SPLITS: tuple[Split, ...] = ("train", "evaluation")


def photographs(config: Config, root: Path) -> Iterator[Artefact]:
    """Every source of photographs; one in S3 is listed, which takes a request per 1000 objects."""
    for split in SPLITS:
        for source in config.degrade.train if split == "train" else config.degrade.evaluation:
            place = root
            if here_or_shipped(root, source.path) != root / source.path:
                place = shipped(".")
            try:
                photos = listed([source], split, place)
            except (ValueError, OSError) as error:
                where = "a folder of photographs, or s3://bucket/prefix"
                yield Artefact(
                    f"degrade.{split}", source.path, MISSING, 0, "yours", where, str(error)
                )
                continue
            size = sum(
                photo.path.stat().st_size for photo in photos if isinstance(photo.path, Path)
            )
            yield Artefact(
                f"degrade.{split}",
                f"{source.path} ({len(photos)} files)",
                FOUND,
                size,
                "of each photograph",
                "",
            )


def pairs(config: Config, root: Path) -> Iterator[Artefact]:
    """The folders of benchmarks with ready-made pairs, and of the methods compared with ours."""
    for benchmark in config.evaluate.benchmarks:
        settings = config.evaluate.pairs.get(benchmark)
        folders = (
            {} if settings is None else {"lr": settings.lr, "hr": settings.hr, **settings.baselines}
        )
        for kind, name in folders.items():
            images = (
                [path for path in (root / name).iterdir() if path.is_file()]
                if (root / name).is_dir()
                else []
            )
            size, key = (
                sum(path.stat().st_size for path in images),
                f"evaluate.pairs.{benchmark}.{kind}",
            )
            shown = f"{name} ({len(images)} files)" if images else name
            yield Artefact(
                key,
                shown,
                FOUND if images else MISSING,
                size,
                "of the test set",
                "StableSR's test sets, and yours",
            )


def scan(folder: Path, as_json: bool) -> int:
    """Read every row of every shard below `folder` and list what is damaged; 1 if anything is."""
    paths = shard_files(folder)
    if not paths:
        raise ValueError(f"{folder}: no shards here; run the degrade stage")
    rows, problems = 0, list[str]()
    for path in tqdm(paths, "shards", disable=None, leave=False):
        read, lines = damages(path)
        rows += read
        problems += lines
    if as_json:
        text = json.dumps(
            {"ok": not problems, "shards": len(paths), "rows": rows, "damaged": problems}, indent=1
        )
    else:
        text = "\n".join(
            [*problems, f"{rows} rows in {len(paths)} shards, {len(problems) or 'nothing'} damaged"]
        )
    sys.stdout.write(f"{text}\n")
    return 1 if problems else 0
