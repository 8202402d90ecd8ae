"""params.yaml -> Config: layers, YAML 1.2, one line per mistake."""

import shutil
from pathlib import Path

import pytest

from tasks import params
from tasks.params import BadParams


@pytest.fixture
def file(root: Path, tmp_path: Path) -> Path:
    """A copy of params.yaml that a test may spoil."""
    return Path(shutil.copy(root / "tests/params.yaml", tmp_path))


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file


def profile(file: Path, name: str, text: str) -> None:
    folder = file.parent / "profiles"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def message(file: Path, **layers: object) -> str:
    with pytest.raises(BadParams) as caught:
        params.load(file, **layers)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_shipped_file_is_valid(root: Path) -> None:
    config = params.load(root / "tests/params.yaml")
    assert config.model.base == "assets/tiny-sd"


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005"])
def test_exponents_without_a_dot_are_floats(file: Path, text: str) -> None:
    config = params.load(file, overrides=[f"pretrain.optimizer.lr={text}"])
    assert config.pretrain.optimizer.lr == 5e-5


def test_later_layers_win_and_mappings_merge(file: Path) -> None:
    profile(file, "p", "finetune: {omega: 7.5, lora: {rank: 2}}\nseed: 3\n")
    before = params.load(file)
    config = params.load(file, "p", ["seed=4", "reward.perception=[]"])
    assert (config.seed, config.finetune.omega, config.finetune.lora.rank) == (4, 7.5, 2)
    assert config.finetune.lora.alpha == before.finetune.lora.alpha
    assert config.reward.perception == [] and config.reward.fidelity == before.reward.fidelity
    assert config.evaluate == before.evaluate


def test_a_wrong_type_names_key_and_value(file: Path) -> None:
    text = message(file, overrides=["rollout.group='six'"])
    assert (
        text
        == "--set rollout.group='six': rollout.group: Input should be a valid integer (got 'six')"
    )


@pytest.mark.parametrize("value", ["six", "6.0", "true", "null", "[6]"])
def test_no_silent_conversion(file: Path, value: str) -> None:
    assert "rollout.group: Input should be a valid integer" in message(
        file, overrides=[f"rollout.group={value}"]
    )


def test_a_value_out_of_range_says_the_range(file: Path) -> None:
    text = message(file, overrides=["rollout.group=1"])
    assert text.endswith("rollout.group: Input should be greater than or equal to 2 (got 1)")


def test_the_file_at_fault_is_named(file: Path) -> None:
    profile(file, "p", "finetune: {omega: -1.0}\n")
    assert message(file, profile="p").startswith(
        "profiles/p.yaml: finetune.omega: Input should be greater than 0"
    )
    assert message(changed(file, "seed: 0", "seed: -1")).startswith("params.yaml: seed: ")


def test_an_unknown_key_suggests_and_lists(file: Path) -> None:
    text = message(file, overrides=["rollout.grup=6"])
    assert "rollout.grup: unknown key; did you mean group?" in text
    assert "Allowed here: parts, group, metrics" in text
    nested = message(file, overrides=["pretrain.optimizer.learning_rate=1e-4"])
    assert "Allowed here: lr, " in nested
    assert "did you mean rollout?" in message(file, overrides=["rolout.group=6"])


def test_a_renamed_key_is_refused_with_its_new_name(file: Path) -> None:
    old = "evaluate.pairs.realsr={lr: a, hr: b, peers: {OSEDiff: c}}"
    text = message(file, overrides=[old])
    assert text.endswith(
        "evaluate.pairs.realsr.peers: unknown key; it is named baselines now"
    ) and text.startswith("--set evaluate.pairs.realsr")


def test_a_missing_key_is_named(file: Path) -> None:
    text = message(changed(file, "  base: assets/tiny-sd\n", ""))
    assert text == "params.yaml: model.base: missing (folder of the base model in diffusers layout)"


def test_a_rule_over_several_keys_is_one_line(file: Path) -> None:
    assert (
        message(file, overrides=["degrade.crop=100"])
        == "params.yaml: degrade.crop must be a multiple of 32, got 100"
    )


def test_a_reward_that_the_rollouts_do_not_hold_is_one_line(file: Path) -> None:
    text = (
        "params.yaml: reward uses ssim_y, which the rollouts do not hold; add it to rollout.metrics"
    )
    assert message(file, overrides=["reward.fidelity=[psnr_y, ssim_y]"]) == text
    assert message(file, overrides=["reward.fidelity=[]", "reward.perception=[]"]).endswith(
        "reward: fidelity and perception are both empty; name at least one metric"
    )


def test_further_mistakes_are_counted(file: Path) -> None:
    assert message(file, overrides=["seed=x", "rollout.group=1"]).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 0\nseed: 1\n", 'found duplicate key "seed"'),
        ("model: {base: x\n", "not YAML"),
        ("\tseed: 0\n", "not YAML"),
        ("- 1\n", "must be a mapping of sections, is a list"),
        ("", "must be a mapping of sections, is empty"),
        ("seed: \x00\n", "not YAML"),
    ],
)
def test_malformed_files_are_one_line(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    found = message(file)
    assert found.startswith("params.yaml: ")
    assert expected in found


def test_not_text(file: Path) -> None:
    file.write_bytes(b"seed: \xff\xfe")
    assert "not UTF-8 text" in message(file)


def test_a_missing_file_or_profile_is_named(file: Path) -> None:
    missing = message(file.parent / "none.yaml")
    assert "none.yaml: no such file; " in missing and "`gdpo-sr profile NAME`" in missing
    profile(file, "paper", "seed: 0\n")
    profile(file, "own", "seed: 0\n")
    found = message(file, profile="papier")
    assert found.startswith("profiles/papier.yaml: no such profile; there is ")
    assert {"own", "paper", "prior"} <= set(found.partition("there is ")[2].split(", "))


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=3", "seed=[1"])
def test_a_malformed_setting_is_refused(file: Path, text: str) -> None:
    assert message(file, overrides=[text]).startswith(f"--set {text}: ")


def test_a_setting_below_a_plain_value_is_refused(file: Path) -> None:
    assert "seed: Input should be a valid integer" in message(file, overrides=["seed.deep=1"])


def test_a_profile_is_written_into_the_file_with_its_comments(file: Path) -> None:
    profile(
        file, "p", "finetune: {omega: 7.5, optimizer: {lr: 5.0e-5}}\nreward:\n  perception: []\n"
    )
    before = file.read_text()
    params.apply_profile(file, "p")
    assert params.load(file) == params.load(file, "p")
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert comments
    assert [line for line in file.read_text().splitlines() if line.startswith("#")] == comments
    changed_lines = set(before.splitlines()) - set(file.read_text().splitlines())
    assert len(changed_lines) <= 3
    assert sorted(path.name for path in file.parent.iterdir()) == ["params.yaml", "profiles"]


def test_a_profile_in_an_empty_folder_begins_with_what_ships(tmp_path: Path, root: Path) -> None:
    params.apply_profile(tmp_path / "params.yaml", "paper")
    assert params.load(tmp_path / "params.yaml") == params.load(root / "params.yaml", "paper")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_an_invalid_profile_changes_nothing(file: Path) -> None:
    profile(file, "p", "finetune: {omega: -1.0}\n")
    before = file.read_bytes()
    with pytest.raises(BadParams, match=r"^profiles/p\.yaml: finetune\.omega: "):
        params.apply_profile(file, "p")
    assert file.read_bytes() == before


def test_the_shipped_profiles_are_valid(root: Path) -> None:
    for path in sorted((root / "profiles").glob("*.yaml")):
        params.load(root / "tests/params.yaml", path.stem)


def test_a_key_inside_a_list_is_named_with_its_place(file: Path) -> None:
    setting = "degrade.train=[{path: a}, {path: b, frist: 3}]"
    found = message(file, overrides=[setting])
    assert found.startswith(f"--set {setting}: degrade.train.1.frist: unknown key; did you mean")
    assert "did you mean first? Allowed here: path, first, resize" in found


ANCHORS = """\
# of the pretraining
pretrain: &training
  steps: 7  # few
  optimizer: &adam {lr: 1.0e-4, weight_decay: 0.5}
finetune:
  optimizer:
    <<: *adam
    warmup: 3
rollout: {candidates: 4}
"""


@pytest.mark.parametrize(
    "values",
    [
        "pretrain: {optimizer: {lr: 2.0e-4}}",
        "finetune: {optimizer: {lr: 2.0e-4}}",
        "finetune: {optimizer: {weight_decay: 0.25}}\npretrain: {steps: 9}",
        "one: &a {optimizer: {lr: 3.0e-4}}\npretrain: *a\nfinetune: {<<: *a, steps: 1}",
    ],
)
@pytest.mark.parametrize("alias", ["", "other: *training\n", "other: {<<: *training, steps: 8}\n"])
def test_anchors_and_merges_mean_the_same_in_the_file_and_as_a_layer(
    file: Path, monkeypatch: pytest.MonkeyPatch, values: str, alias: str
) -> None:
    """Another section that shares the mapping keeps its values; comments stay."""
    file.write_text(ANCHORS + alias)
    profile(file, "p", values)
    monkeypatch.setattr(params, "_validated", lambda layers: None)
    before = params.read(file)
    expected = params._merge(params._copied(before), params.read(file.parent / "profiles/p.yaml"))
    params.apply_profile(file, "p")
    assert params.read(file) == expected
    assert "# of the pretraining" in file.read_text() and "# few" in file.read_text()
    if alias:
        assert expected["other"] == before["other"]


def test_one_item_of_a_list_can_be_set(file: Path) -> None:
    config = params.load(
        file, overrides=["degrade.train.0.first=3", "rollout.parts.1=b", "rollout.parts.0=a"]
    )
    assert (config.degrade.train[0].path, config.degrade.train[0].first) == (
        params.load(file).degrade.train[0].path,
        3,
    )
    assert config.rollout.parts == ["a", "b"]
    wrong = message(file, overrides=["degrade.train.7.first=3"])
    assert wrong == "--set degrade.train.7.first=3: a list of 1 items has no item '7'"
