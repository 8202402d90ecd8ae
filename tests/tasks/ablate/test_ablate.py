"""`gdpo-sr ablate` on tiny inputs: what is planned, run once, written, left out, refused, and
survived.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gdpo.config import Config
from gdpo.hooks import Hooks, Stopped
from gdpo.model.naosd import NAOSD
from tasks import __main__ as cli
from tasks.ablate import runs as ablation_runs
from tasks.ablate.rows import ABLATIONS
from tasks.ablate.runs import Job, perform
from tasks.files import chunks as rollout_chunks
from tasks.tools import ablate
from tests.tasks.ablate.runs import (
    configured,
    fabricated,
    in_this_process,
    really,
    reports,
)

ROWS = {"5": 8, "6": 5, "7": 4, "9": 4, "11": 4, "options": 8}  # NAOSD among them


@pytest.fixture
def root(selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    root = Path(shutil.copytree(selected, tmp_path / "root", symlinks=True))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def here() -> Iterator[list[Job]]:
    """Fabricated runs in this process."""
    with in_this_process(fabricated) as did:
        yield did


def test_the_sample_profile_plans_22_configurations_with_controls(sample_config: Config) -> None:
    needed = ablate.needed_runs(sample_config, list(ABLATIONS), {"metrics": {}})
    assert (
        len(needed.then)
        == 22 * sample_config.ablate.repeats * 2
        == len({job.fingerprint for job in needed.then})
    )
    kinds = [
        (job.kind, job.config.rollout.candidates, job.config.rollout.input) for job in needed.first
    ]
    sets = [
        ("rollouts", mode, input_)
        for mode, input_ in (
            ("noise", "reencoded"),
            ("action", "reencoded"),
            ("guidance", "reencoded"),
            ("t_add", "reencoded"),
            ("noise", "lr"),
        )
    ]
    assert (
        kinds[:6] == [*sets, ("naosd", "noise", "reencoded")]
        and [kind[0] for kind in kinds[6:]] == ["pretrain"] * 12
    )
    assert [job.config.rollout.group for job in needed.first[:6]] == [8, 6, 6, 6, 8, 6]
    gdpo = [table[ABLATIONS[key].gdpo] for key, table in needed.rows.items() if key != "fig7"]
    assert all(one == gdpo[0] for one in gdpo)


def test_a_fingerprint_names_what_a_run_depends_on(sample_config: Config) -> None:
    needed = ablate.needed_runs(sample_config, ["options"], {"metrics": {}})
    runs = needed.rows["options"]
    gdpo, half = runs["GDPO"][0][0], runs["half the rollouts"][0][0]
    assert gdpo.config == half.config and gdpo.fingerprint != half.fingerprint
    assert len({job.fingerprint for job in (*runs["GDPO"][0], *runs["GDPO"][1])}) == 6
    other = ablate.needed_runs(
        sample_config, ["options"], {"metrics": {}, "naosd": "another"}
    ).rows["options"]["GDPO"][0][0]
    assert other.fingerprint != gdpo.fingerprint
    slower = sample_config.model_copy(
        update={"ablate": sample_config.ablate.model_copy(update={"processes": 7})}
    )
    assert (
        ablate.needed_runs(slower, ["options"], {"metrics": {}})
        .rows["options"]["GDPO"][0][0]
        .fingerprint
        == gdpo.fingerprint
    )


def test_every_table_is_written_and_its_runs_are_shared(
    root: Path, here: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ablate"]) == 0
    names = {
        f"{table.name}.{suffix}"
        for table in ABLATIONS.values()
        for suffix in ("md", "csv", "html", "svg")
    }
    assert set(reports(root)) == {*names, "index.md", "results.json"}
    content = json.loads(reports(root)["results.json"])
    assert (
        content["images"] == 3
        and content["photographs"] == 1
        and content["fine_tunings"] == len(here) - 5 - 1 - 12
    )
    for key, count in ROWS.items():
        found = content["tables"][key]["records"]
        assert len({record["row"] for record in found}) == count
        control = [r["to_control"] for r in found if r["row"] != "NAOSD" and r["metric"]]
        assert all(len(difference["repeats"]) == 3 for difference in control)
    sentence = content["tables"]["options"]["sentence"]
    assert sentence.startswith(
        ("Beyond the controls none is", "Against GDPO and beyond the controls")
    )
    assert len(content["tables"]["fig7"]["claims"]) == 18
    assert "Table 5: Signs of the differences to NAOSD" in capsys.readouterr().out
    assert content["distances"]["9"]["PSNR"] == [None, None]  # logged with rollout.input lr alone
    text = reports(root)["table-9.md"].decode()
    assert text.index("](table-9.svg)") < text.index("| Method |") and "PSNR+LPIPS" in text
    # Nothing is left to do, and the same bytes are written.
    before, done = reports(root), len(here)
    assert cli.main(["ablate", "--json"]) == 0
    assert len(here) == done and reports(root) == before
    assert json.loads(capsys.readouterr().out)["tables"].keys() == ABLATIONS.keys()


def test_fewer_candidates_are_the_first_of_the_same_set(straight: tuple[Path, list[Job]]) -> None:
    root, did = straight
    assert [job.config.rollout.group for job in did if job.kind == "rollouts"] == [8]
    rows = [job.config.rollout.group for job in did if job.kind == "finetune"]
    assert sorted(rows) == [4] * 6 + [6] * 6 + [8] * 6
    assert len({(root / job.output).read_bytes() for job in did if job.kind == "finetune"}) == 18
    assert not list((root / "work/ablate/checkpoints").iterdir())
    content = json.loads(reports(root)["results.json"])
    trained = [
        r
        for r in content["tables"]["7"]["records"]
        if r["row"] == "GDPO-SR (G=4)" and r["column"] == "PSNR"
    ]
    assert trained[0]["to_naosd"]["mean"] != 0 and trained[0]["to_control"]["mean"] != 0


def test_the_references_errors_are_made_anew_for_other_noises(root: Path) -> None:
    with in_this_process(really):
        needed = ablate.needed_runs(
            configured(), ["options"], ablation_runs.sources(configured(), root)
        )
        perform(needed.first[0], root, Hooks())
        gdpo, shared, consistent = (
            needed.rows["options"][name][0][0]
            for name in ("GDPO", "noise: shared", "target: consistent")
        )
        assert gdpo.rollouts == shared.rollouts == consistent.rollouts
        model = NAOSD.from_pretrained(root / "models/naosd", base=root / "base")
        rollouts = [ablation_runs._groups(job, root, model) for job in (gdpo, shared, consistent)]
    for own, same, other in zip(*rollouts, strict=True):
        assert own.metrics == same.metrics and own.seeds == same.seeds and len(own.seeds) == 3
        first = [errors[0] for errors in own.reference_error]
        assert [errors[0] for errors in same.reference_error] == pytest.approx(first, rel=1e-4)
        assert (
            own.reference_error != same.reference_error
            and own.reference_error != other.reference_error
        )


def test_rollouts_go_on_with_the_chunk_they_were_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured()
    job = next(
        job
        for job in ablate.needed_runs(config, ["9"], ablation_runs.sources(config, root)).first
        if job.kind == "rollouts"
    )
    rollout, rollouts = rollout_chunks.rollout, list[str]()

    def noted(model: Any, pairs: Any, config: Config) -> Any:
        rollouts.extend(pair.id for pair in pairs)
        return rollout(model, pairs, config)

    monkeypatch.setattr(rollout_chunks, "rollout", noted)
    for _ in range(2):
        with pytest.raises(Stopped):
            perform(job, root, Hooks(should_stop=lambda: True))
        assert not (root / job.output).exists()
    perform(job, root, Hooks())
    ids = [row["id"] for row in pq.read_table(root / job.output).to_pylist()]
    assert rollouts == ids == [pair.id for pair in ablation_runs._selected(config, root)]
    assert not (root / "work/ablate/checkpoints" / job.fingerprint).exists()
