"""The paper's ablations as data, the rows, and how a sign is judged."""

import pytest

from gdpo.config import Config
from tasks.ablate import rows as ablation
from tasks.ablate.rows import ABLATIONS, base, changed, is_stand_in, metric_of, metrics_of, rows
from tasks.ablate.tables import heading
from tasks.report import paper
from tasks.tools.ablate import needed_runs
from tests import tiny
from tests.tasks.printed import printed


@pytest.mark.parametrize("key", [key for key, table in ABLATIONS.items() if table.printed])
def test_every_value_is_the_printed_one(key: str) -> None:
    read = {("RealSR", row): values for row, values in ABLATIONS[key].printed.items()}
    assert read == printed(key)
    assert set(ABLATIONS[key].columns) == set(read["RealSR", ablation.NAOSD])


def test_naosd_and_gdpo_are_those_of_table_1_but_for_the_slip() -> None:
    main = paper.TABLES[1].results["RealSR"]
    for key, table in ABLATIONS.items():
        for line, method in ((ablation.NAOSD, paper.NAOSD), (table.gdpo, paper.OURS)):
            differing = {c for c, v in table.printed.get(line, {}).items() if v != main[method][c]}
            assert differing == ({"AFINE"} if key == "5" else set()), (key, line)
    other = paper.TABLES[1].results["DRealSR"]
    assert ABLATIONS["5"].printed[ablation.NAOSD]["AFINE"] == other[paper.NAOSD]["AFINE"]


@pytest.mark.parametrize("key", ABLATIONS)
def test_rows_are_the_papers_and_valid_configurations(key: str, sample_config: Config) -> None:
    start = base(sample_config)
    found = rows(key, start)
    for row in found:
        changed(start, row.changes)
    printed = [name for name in ABLATIONS[key].printed if name != ablation.NAOSD]
    assert [row.name for row in found if row.name in printed] == printed
    assert (key == "fig7") == (not found) and (
        key == "fig7" or ABLATIONS[key].gdpo in [row.name for row in found]
    )


def test_gdpo_is_one_configuration_in_every_table(sample_config: Config) -> None:
    start = base(sample_config)
    made = [
        changed(start, row.changes)
        for key, table in ABLATIONS.items()
        for row in rows(key, start)
        if row.name == table.gdpo
    ]
    assert len(made) == 6 and all(one == start for one in made)


def test_the_papers_reward_is_adaptive_whatever_the_profile_says(sample_config: Config) -> None:
    start = base(changed(sample_config, {"reward": {"weighting": "equal"}}))
    weighting = {row.name: changed(start, row.changes).reward.weighting for row in rows("6", start)}
    assert (weighting["ARF w/o AW"], weighting["ARF (ours)"]) == ("equal", "adaptive")


def test_options_set_one_key_the_other_way(sample_config: Config) -> None:
    start = base(sample_config)
    assert (start.rollout.noise, start.rollout.target, start.finetune.omega) == (
        "shared",
        "consistent",
        500.0,
    )
    assert [row.name for row in rows("options", start)] == [
        "GDPO",
        "noise: own",
        "target: added",
        "input: lr",
        "omega: 5000",
        "half the rollouts",
        "half the batch",
    ]
    other = changed(
        start, {"rollout": {"noise": "own", "target": "added"}, "finetune": {"omega": 1.0}}
    )
    assert [row.name for row in rows("options", other)][1:6] == [
        "noise: shared",
        "target: consistent",
        "input: lr",
        "omega: 500",
        "omega: 5000",
    ]


def test_at_the_lr_latent_there_is_no_choice_of_noise_and_target(sample_config: Config) -> None:
    """The rows that need the other input say so, and have rollout sets of their own."""
    start = base(changed(sample_config, {"rollout": {"input": "lr"}}))
    assert [row.name for row in rows("options", start)][:3] == [
        "GDPO",
        "input: reencoded",
        "omega: 5000",
    ]
    by_rule = changed(start, {"finetune": {"omega": None}})
    assert [row.name for row in rows("options", by_rule)][2:4] == ["reach: 0.2", "reach: 0.8"]
    actions = next(row for row in rows("5", start) if row.name == "DanceGRPO")
    assert changed(start, actions.changes).rollout.input == "reencoded"
    made = needed_runs(start, ["5", "options"], {}).first
    kinds = {
        (job.config.rollout.input, job.config.rollout.candidates)
        for job in made
        if job.kind == "rollouts"
    }
    assert kinds == {("lr", "noise"), ("reencoded", "action"), ("reencoded", "noise")}


def test_a_stand_in_is_used_only_where_the_papers_metric_is_not_evaluated() -> None:
    plain, whole = (
        tiny.settings(),
        tiny.settings(evaluate={"metrics": list(paper.METRICS.values())}),
    )
    for column, own in paper.METRICS.items():
        metrics = metric_of(column, plain), metric_of(column, whole)
        if column == "FID":
            assert metrics == (None, None)
        elif column in ("PSNR", "SSIM"):
            assert metrics == (own, own)
        else:
            assert metrics == (ablation.STAND_INS[column], own) and is_stand_in(
                column, metrics[0] or ""
            )
    assert (
        heading("LPIPS", "gmsd") == "LPIPS ↓ (ours: GMSD ↓)"
        and heading("LPIPS", "lpips_alex") == "LPIPS ↓"
    )
    assert (
        heading("MUSIQ", "niqe") == "MUSIQ ↑ (ours: NIQE (own fit) ↓)"
        and heading("FID", None) == "FID ↓ (ours: none)"
    )
    assert metrics_of(plain) == ["psnr_y", "ssim_y", "niqe", "piqe", "gmsd"]
