"""The files between the stages `select`, `rollout` and `finetune`: the selected pairs and their
groups.

    data/rollouts/<part>/00000.parquet   one row per group (gdpo/preference/group.py), in the order
                                         of the manifest
      metadata  gdpo-rollout             version of the columns
                rollout                  `header`: everything the groups depend on; `finetune`
                                         rejects a file whose header differs from the current one
                plan                     `plan`: how the selected pairs are split into parts, their
                                         hash, and the metric versions; equal in all files of a set
                skipped                  {pair id: why it gave no group}
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config, Rollout
from gdpo.data.shards import Pair, Shards, shard_files
from gdpo.metrics.score import missing, versions
from gdpo.preference.errors import check_group
from gdpo.preference.group import SCHEMA_VERSION, Group, from_row, schema
from tasks.run.fingerprint import fingerprint

AGAIN = "run the rollout stage again"
# Settings that matter for one kind of candidates only (ONLY_FOR) or for no group (NO_MATTER).
ONLY_FOR = {"guidance_range": "guidance", "t_add_range": "t_add", "sigma": "action"}
NO_MATTER = {"parts", "batch"}
NAMES = {
    "reference": "reference (models/naosd)",
    "prompts": "text encoder or tokenizer (model.base)",
}
MAY_BE_NULL = {"tags", "latent_lr"}


def header(config: Config, root: Path) -> dict[str, Any]:
    """{printed name: value} of everything that a rollout set depends on, except the pairs."""
    kind = config.rollout.candidates
    settings = config.rollout.model_dump(exclude=NO_MATTER)
    found = {
        "reference": fingerprint({}, [root / "models/naosd"]),
        "prompts": prompts_of(config, root),
        "seed": config.seed,
        **{
            f"rollout.{key}": value
            for key, value in settings.items()
            if ONLY_FOR.get(key, kind) == kind
        },
        "model.training_prompt": config.model.training_prompt,
    }
    return found | (
        {"model.negative_prompt": config.model.negative_prompt} if kind == "guidance" else {}
    )


def prompts_of(config: Config, root: Path) -> str:
    """A hash of the text encoder and tokenizer; a model's own card has only the hashes of UNet and
    VAE.
    """
    return fingerprint(
        {}, [root / config.model.base / name for name in ("text_encoder", "tokenizer")]
    )


class Selected(Sequence[Pair]):
    """The pairs of data/selected/manifest.parquet, each read from data/shards/train on access.

    by_id: in the order of the groups in `Rollouts`; otherwise by rank.

    Errors: ValueError naming the missing or damaged manifest or shard, or a patch that is in no
    shard.
    """

    def __init__(self, root: Path, *, by_id: bool = False) -> None:
        path = root / "data/selected/manifest.parquet"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; run the select stage")
        self._shards = Shards(root / "data/shards/train")
        self._index = {id_: i for i, id_ in enumerate(self._shards.ids)}
        try:
            self.ids: list[str] = pq.read_table(path, columns=["id"]).column("id").to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: damaged manifest ({_line(error)}); run the select stage again"
            ) from error
        strangers = [id_ for id_ in self.ids if id_ not in self._index]
        if strangers:
            raise ValueError(
                f"{path}: patch {strangers[0]} is not in data/shards/train; run the select stage "
                "again"
            )
        if by_id:
            self.ids.sort()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """The pair at an index, or the pairs of a slice."""
        if isinstance(index, slice):
            return [self._shards[self._index[id_]] for id_ in self.ids[index]]
        return self._shards[self._index[self.ids[index]]]

    def fingerprint(self) -> str:
        """SHA-256 of the ids in order, and of the contents of the shards."""
        return hashlib.sha256(
            json.dumps([self.ids, self._shards.fingerprint()]).encode()
        ).hexdigest()


def pairs_at_once(settings: Rollout) -> int:
    """Pairs per forward pass: at most `rollout.batch` candidates, but at least one pair."""
    return max(1, settings.batch // settings.group)


def ranks(count: int, settings: Rollout, part: str) -> dict[int, range]:
    """{chunk number: ranks of its pairs} of one part: of n parts, part k has the chunks c with c %
    n == k.

    A chunk is one forward pass, so the number of parts changes no batch and no bit of a group.
    """
    size, parts = pairs_at_once(settings), settings.parts
    chunks = range(parts.index(part), -(-count // size), len(parts))
    return {chunk: range(chunk * size, min((chunk + 1) * size, count)) for chunk in chunks}


def plan(pairs: Selected, settings: Rollout) -> dict[str, Any]:
    """The data that all parts of a set share: it determines the split into parts, and whether their
    scores are comparable.
    """
    shares = {
        "parts": settings.parts,
        "pairs_at_once": pairs_at_once(settings),
        "selected": pairs.fingerprint(),
    }
    return {**shares, "metrics": versions(settings.metrics)}


class Rollouts(Sequence[Group]):
    """All groups of the rollout set, sorted by id. Each is read and checked on access: 120,000
    full-size groups take 47 GB.

    Errors: ValueError naming the file and the problem. On construction: another reference or other
    settings, another selection or other metrics than in the other parts, a missing part, a
    duplicate group. On access to a group: damage, or a value that is missing or not finite.
    """

    def __init__(self, config: Config, root: Path) -> None:
        folder = root / "data/rollouts"
        paths = shard_files(folder)
        if not paths:
            raise ValueError(f"{folder}: no rollouts here; run the rollout stage")
        wanted = header(config, root)
        plans = {path: _check_metadata(path, wanted) for path in paths}
        _check_parts(folder, plans)
        _check_metrics(paths[0], plans[paths[0]], config.rollout)
        self._settings = config.rollout
        self._files = {path: _opened(path) for path in paths}
        places: dict[str, tuple[Path, int, int]] = {}  # id -> file, row group, row in it
        for path, file in self._files.items():
            for id_, place in _ids(path, file, config.rollout):
                if id_ in places:
                    raise ValueError(f"{path}: group {id_} is there twice; {AGAIN}")
                places[id_] = (path, *place)
        if not places:
            raise ValueError(f"{folder}: no group in any part; {AGAIN}")
        self._places = [places[id_] for id_ in sorted(places)]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        """The group at an index, or the groups of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, number, row = self._places[index]
        with _damage(path):
            table = self._files[path].read_row_group(number, use_threads=False).slice(row, 1)
        empty = [
            name
            for name in table.column_names
            if name not in MAY_BE_NULL and table[name].null_count
        ]
        if empty:
            raise ValueError(f"{path}: {empty[0]} is missing in a row; {AGAIN}")
        return _group(path, table.to_pylist()[0], self._settings)


def _check_metrics(path: Path, made: dict[str, Any], settings: Rollout) -> None:
    """Reject scores of other metric code or weights than the present: they are not comparable.

    Training itself computes no metrics, so the check is skipped if their weights are missing.
    """
    if missing(settings.metrics):
        return
    for name, version in versions(settings.metrics).items():
        if made["metrics"].get(name) != version:
            raise ValueError(
                f"{path}: {name} was computed by {made['metrics'].get(name)}, and here it is "
                f"{version}; {AGAIN}"
            )


def _ids(
    path: Path, file: pq.ParquetFile, settings: Rollout
) -> Iterator[tuple[str, tuple[int, int]]]:
    """(id, (row group, row in it)) of every group of a file; reads only the column `id`."""
    if file.schema_arrow.remove_metadata() != schema(settings, "").remove_metadata():
        raise ValueError(f"{path}: other columns than rollouts have; {AGAIN}")
    with _damage(path):
        for number in range(file.num_row_groups):
            ids = file.read_row_group(number, columns=["id"], use_threads=False)["id"]
            if ids.null_count:
                raise ValueError(f"{path}: id is missing in a row; {AGAIN}")
            yield from ((id_, (number, row)) for row, id_ in enumerate(ids.to_pylist()))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn read errors into a ValueError naming the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged rollouts ({_line(error)}); {AGAIN}") from error


def _check_metadata(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The plan of a file; ValueError unless its header equals `wanted`."""
    with _opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
    if metadata.get(b"gdpo-rollout") != SCHEMA_VERSION.encode() or b"plan" not in metadata:
        raise ValueError(f"{path}: no rollouts of this version; delete it and {AGAIN}")
    found = json.loads(metadata[b"rollout"])
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if found.get(key) != wanted.get(key):
            known, present = (_short(values.get(key)) for values in (found, wanted))
            name = NAMES.get(key, key)
            raise ValueError(f"{path}: made with {name} {known}, and now it is {present}; {AGAIN}")
    return dict(json.loads(metadata[b"plan"]))


def _check_parts(folder: Path, plans: dict[Path, dict[str, Any]]) -> None:
    """Require that all files share one plan and that there is one file per part."""
    first, of_first = next(iter(plans.items()))
    for path, found in plans.items():
        if found != of_first:
            key = next(key for key in of_first if found.get(key) != of_first[key])
            raise ValueError(
                f"{path}: of another rollout set than {first} (other {key}); run all parts of the "
                "rollout stage"
            )
    there = {path.relative_to(folder).as_posix() for path in plans}
    files = {f"{part}/00000.parquet": part for part in of_first["parts"]}
    missing = [part for name, part in files.items() if name not in there]
    if missing:
        raise ValueError(
            f"{folder}: part {missing[0]} is missing; run it: python -m tasks rollout --part "
            f"{missing[0]}"
        )
    if odd := sorted(there - set(files)):
        raise ValueError(
            f"{folder / odd[0]}: belongs to no part ({', '.join(of_first['parts'])}); delete it"
        )


def _group(path: Path, row: dict[str, Any], settings: Rollout) -> Group:
    """One group. ValueError unless all training inputs are complete (every candidate and noise) and
    finite.
    """
    try:
        group = from_row(row)
    except ValueError as error:
        raise ValueError(
            f"{path}: group {row['id']}: damaged latents ({_line(error)}); {AGAIN}"
        ) from error
    try:
        check_group(group)
    except ValueError as error:
        raise ValueError(f"{path}: {_line(error)}; {AGAIN}") from error
    size = (len(group.seeds), len(group.noise_seeds), len(group.reference_error))
    if size != (settings.group, settings.noises, settings.noises):
        raise ValueError(
            f"{path}: group {group.id} is not of {settings.group} candidates and "
            f"{settings.noises} noises; {AGAIN}"
        )
    return group


def _opened(path: Path) -> pq.ParquetFile:
    with _damage(path):
        return pq.ParquetFile(path, page_checksum_verification=True)


def _short(value: object) -> str:
    """A value of the header for a message; hashes are cut to 12 characters, long texts to 60."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:60]}..." if len(text) > 64 else text[:12] if len(text) == 64 else text


def _line(error: Exception) -> str:
    """The error's message on one line."""
    return " ".join(str(error).split())
