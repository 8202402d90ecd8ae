"""The files between the stages `rollout` and `finetune`: the groups of the selected pairs.

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
from pathlib import Path
from typing import Any, overload

import pyarrow.parquet as pq

from gdpo.config import Config, Rollout
from gdpo.data.shards import shard_files
from gdpo.errors import one_line
from gdpo.metrics.score import missing, versions
from gdpo.preference.errors import check_group
from gdpo.preference.group import SCHEMA_VERSION, Group, from_row, schema
from tasks import paths
from tasks.files.groups import AGAIN, check_hash, damage, opened
from tasks.files.selection import Selected
from tasks.run.fingerprint import model_fingerprint, prompts_of

FILE = "00000.parquet"  # of a part
# Settings that matter for one kind of candidates only (ONLY_FOR) or for no group (NO_EFFECT).
ONLY_FOR = {"guidance_range": "guidance", "t_add_range": "t_add", "sigma": "action"}
NO_EFFECT = {"parts", "batch"}
NAMES = {
    "reference": "reference (models/naosd)",
    "prompts": "text encoder or tokenizer (model.base)",
}


def header(config: Config, root: Path) -> dict[str, Any]:
    """{printed name: value} of everything that a rollout set depends on, except the pairs."""
    kind = config.rollout.candidates
    settings = config.rollout.model_dump(exclude=NO_EFFECT)
    stated = {
        "reference": model_fingerprint(root / paths.NAOSD),
        "prompts": prompts_of(root / config.model.base),
        "seed": config.seed,
        **{
            f"rollout.{key}": value
            for key, value in settings.items()
            # A changed `sigma` must not make rollouts of other candidates void, which never read
            # it.
            if ONLY_FOR.get(key, kind) == kind
        },
        "model.training_prompt": config.model.training_prompt,
    }
    return stated | (
        {"model.negative_prompt": config.model.negative_prompt} if kind == "guidance" else {}
    )


def pairs_at_once(settings: Rollout) -> int:
    """Pairs per forward pass: at most `rollout.batch` candidates, but at least one pair."""
    return max(1, settings.batch // settings.group)


def chunk_ranks(count: int, settings: Rollout, part: str) -> dict[int, range]:
    """{chunk number: ranks of its pairs} of one part: of n parts, part k has the chunks c with c %
    n == k.

    A chunk is one forward pass, so the number of parts changes no batch and no bit of a group.
    """
    size, parts = pairs_at_once(settings), settings.parts
    # Every n-th chunk and not one run of them: ranks follow the scores, so each part gets good and
    # bad pairs and takes as long as the others.
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
    full-size groups take 47 GB. made_from: the present `header`.

    Errors: ValueError naming the file and the problem. On construction: another reference or other
    settings, another selection or other metrics than in the other parts, a missing part, a
    duplicate group. On access to a group: damage, or a value that is missing or not finite.
    """

    def __init__(self, config: Config, root: Path, made_from: dict[str, Any]) -> None:
        folder = root / paths.ROLLOUTS
        files = shard_files(folder)
        if not files:
            raise ValueError(f"{folder}: no rollouts here; run the rollout stage")
        plans = {path: _check_metadata(path, made_from) for path in files}
        _check_parts(folder, plans)
        _check_metrics(files[0], plans[files[0]], config.rollout)
        self._settings = config.rollout
        # Kept open: a step reads groups of random files, and a footer takes longer to parse than a
        # group to read.
        self._files = {path: opened(path) for path in files}
        places: dict[str, tuple[Path, int, int]] = {}  # id -> file, row group, row in it
        for path, file in self._files.items():
            for id_, place in _ids(path, file, config.rollout):
                if id_ in places:
                    raise ValueError(f"{path}: group {id_} occurs twice; {AGAIN}")
                places[id_] = (path, *place)
        if not places:
            raise ValueError(f"{folder}: no group in any part; {AGAIN}")
        # By id, so that the order of training does not depend on the number of parts.
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
        with damage(path):
            # A row group is one chunk, so that reading one group at random costs little more than
            # its own bytes.
            table = self._files[path].read_row_group(number, use_threads=False).slice(row, 1)
        unused = may_be_null(self._settings)
        empty = [
            name for name in table.column_names if name not in unused and table[name].null_count
        ]
        if empty:
            raise ValueError(f"{path}: {empty[0]} is missing in a row; {AGAIN}")
        return _group(path, table.to_pylist()[0], self._settings)

    def fingerprint(self) -> str:
        """SHA-256 over the stored hashes of all rows, file by file, without reading a latent.

        A row that no longer matches its stored hash is detected when it is read.
        """
        digest = hashlib.sha256()
        for path, file in self._files.items():
            with damage(path):
                for batch in file.iter_batches(columns=["sha256"], use_threads=False):
                    digest.update("".join(batch["sha256"].to_pylist()).encode())
        return digest.hexdigest()


def may_be_null(settings: Rollout) -> set[str]:
    """The columns that groups of these settings need not have (gdpo/preference/group.py)."""
    if settings.input == "lr":
        return {"tags", "latent_std"}
    kept = {"latent_std"} if settings.candidates == "action" else {"latent_lr"}
    return {"tags", "latent_prediction", *kept}


def _check_metrics(path: Path, stored: dict[str, Any], settings: Rollout) -> None:
    """Reject scores of other metric code or weights than the present: they are not comparable.

    Training itself computes no metrics, so the check is skipped if their weights are missing.
    """
    if missing(settings.metrics):
        return
    for name, version in versions(settings.metrics).items():
        if stored["metrics"].get(name) != version:
            raise ValueError(
                f"{path}: {name} was computed by {stored['metrics'].get(name)}, and here it is "
                f"{version}; {AGAIN}"
            )


def _ids(
    path: Path, file: pq.ParquetFile, settings: Rollout
) -> Iterator[tuple[str, tuple[int, int]]]:
    """(id, (row group, row in it)) of every group of a file; reads only the column `id`."""
    if file.schema_arrow.remove_metadata() != schema(settings, "").remove_metadata():
        raise ValueError(f"{path}: other columns than rollouts have; {AGAIN}")
    with damage(path):
        for number in range(file.num_row_groups):
            ids = file.read_row_group(number, columns=["id"], use_threads=False)["id"]
            if ids.null_count:
                raise ValueError(f"{path}: id is missing in a row; {AGAIN}")
            yield from ((id_, (number, row)) for row, id_ in enumerate(ids.to_pylist()))


def _check_metadata(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The plan of a file; ValueError unless its header equals `wanted`."""
    with opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
    if metadata.get(b"gdpo-rollout") != SCHEMA_VERSION.encode() or b"plan" not in metadata:
        raise ValueError(f"{path}: no rollouts of this version; delete it and {AGAIN}")
    stored = json.loads(metadata[b"rollout"])
    # In the order of `header`, so that the message names the most telling difference first: the
    # reference before its settings.
    for key in [*wanted, *(key for key in stored if key not in wanted)]:
        if stored.get(key) != wanted.get(key):
            stored_value, wanted_value = (_short(values.get(key)) for values in (stored, wanted))
            name = NAMES.get(key, key)
            raise ValueError(
                f"{path}: made with {name} {stored_value}, and now it is {wanted_value}; {AGAIN}"
            )
    return dict(json.loads(metadata[b"plan"]))


def _check_parts(folder: Path, plans: dict[Path, dict[str, Any]]) -> None:
    """Require that all files share one plan and that there is one file per part."""
    first, of_first = next(iter(plans.items()))
    for path, of_path in plans.items():
        if of_path != of_first:
            key = next(key for key in of_first if of_path.get(key) != of_first[key])
            raise ValueError(
                f"{path}: of another rollout set than {first} (other {key}); run all parts of the "
                "rollout stage"
            )
    present = {path.relative_to(folder).as_posix() for path in plans}
    files = {f"{part}/{FILE}": part for part in of_first["parts"]}
    missing = [part for name, part in files.items() if name not in present]
    if missing:
        raise ValueError(
            f"{folder}: part {missing[0]} is missing; run it: python -m tasks rollout --part "
            f"{missing[0]}"
        )
    if unknown := sorted(present - set(files)):
        raise ValueError(
            f"{folder / unknown[0]}: belongs to no part ({', '.join(of_first['parts'])}); delete it"
        )


def _group(path: Path, row: dict[str, Any], settings: Rollout) -> Group:
    """One group. ValueError unless all training inputs are complete (every candidate and noise) and
    finite.
    """
    try:
        group = from_row(row)
    except ValueError as error:
        raise ValueError(
            f"{path}: group {row['id']}: damaged latents ({one_line(error)}); {AGAIN}"
        ) from error
    try:
        check_group(group)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}; {AGAIN}") from error
    size = (len(group.seeds), len(group.noise_seeds), len(group.reference_error))
    if size != (settings.group, settings.noises, settings.noises):
        raise ValueError(
            f"{path}: group {group.id} is not of {settings.group} candidates and "
            f"{settings.noises} noises; {AGAIN}"
        )
    check_hash(path, row)
    return group


def _short(value: object) -> str:
    """A value of the header for a message; hashes are cut to 12 characters, long texts to 60."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:60]}..." if len(text) > 64 else text[:12] if len(text) == 64 else text
