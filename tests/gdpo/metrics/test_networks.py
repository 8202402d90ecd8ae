"""Every network of the table, built from files of random weights: offline, without unpickling, and
giving sane values.
"""

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
import torch

from gdpo.metrics import lpips, maniqa, networks
from gdpo.metrics import score as metrics
from gdpo.metrics.score import METRICS, score, unusable, versions
from tests.gdpo.metrics import weights

pytestmark = pytest.mark.usefixtures("no_initial_weights")

NETWORKS = [name for name, row in METRICS.items() if row.weights and not row.per_set]
QUICK = [name for name in NETWORKS if not name.startswith("maniqa")]
RANGES = {
    "clipiqa": (0.0, 1.0),
    "lpips_alex": (0.0, 1.0),
    "dists": (-1e-5, 1.0),
    "afine": (0.0, 100.0),
}

WRITERS: dict[str, Callable[[Path], None]] = {
    "niqe_pyiqa": weights.niqe,
    "musiq": weights.musiq,
    "topiq_nr": weights.topiq,
    "brisque": weights.brisque,
    "clipiqa": weights.clip,
    "lpips_alex": weights.lpips,
    "dists": weights.dists,
    "afine": weights.afine,
    "maniqa_koniq": weights.maniqa,
    "maniqa_pipal": weights.maniqa,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub folder; no file left from $TORCH_HOME can be found, and pyiqa may have
    been imported before.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for folder in ("pyiqa", "clip", "checkpoints"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder with all files but MANIQA's: a network is built once for all tests that use
    this.
    """
    folder = tmp_path_factory.mktemp("torch")
    for name in ("pyiqa", "clip", "checkpoints"):
        (folder / "hub" / name).mkdir(parents=True)
    for name in QUICK:
        WRITERS[name](folder / "hub")
    return folder


def photo(height: int = 64, width: int = 96) -> torch.Tensor:
    image = skimage.data.astronaut()[40 : 40 + height, 150 : 150 + width]
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


def noisy(image: torch.Tensor) -> torch.Tensor:
    return (
        image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)


def check_sane(name: str, image: torch.Tensor) -> None:
    """Finite, in range, different for different images, and the same for each image alone up to
    rounding.
    """
    row = METRICS[name]
    pair = torch.cat([image, noisy(image)])
    reference = torch.cat([noisy(image).flip(3), image]) if row.needs_reference else None
    found = score([name], pair, reference)[name]
    low, high = RANGES.get(name, (0.0, math.inf))
    assert found.dtype == torch.float64 and found.shape == (2,)
    assert bool((found >= low).all() and (found <= high).all() and found.isfinite().all()), found
    assert found[0] != found[1]
    alone = score([name], pair[:1], None if reference is None else reference[:1])[name]
    torch.testing.assert_close(found[:1], alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", QUICK)
def test_a_network_is_built_from_its_files_alone(
    name: str, hub: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = unusable([name])[name]
    assert all(Path(file).name in reason for file in METRICS[name].weights)
    monkeypatch.setenv("TORCH_HOME", str(shared))
    image = photo(max(64, METRICS[name].min_side), 128)
    before = image.clone()
    check_sane(name, image)
    assert unusable([name]) == {}
    assert torch.equal(image, before)
    assert versions([name])[name].count("sha256") == len(METRICS[name].weights)


@pytest.mark.full_size
@pytest.mark.parametrize("name", ["maniqa_koniq", "maniqa_pipal"])
def test_maniqa_of_full_size_is_built_and_agrees_with_pyiqa(
    name: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiqa.archs.maniqa_arch import MANIQA

    weights.maniqa(hub)
    monkeypatch.setattr(maniqa, "CROPS", 2)
    monkeypatch.setattr(maniqa, "GRID", 2)
    check_sane(name, photo(232, 250))
    with networks.offline("maniqa_arch"):
        theirs = MANIQA(
            pretrained=False, test_sample=2, scale={"maniqa_koniq": 0.8, "maniqa_pipal": 0.13}[name]
        ).eval()
    theirs.load_state_dict(metrics.network(name, "cpu").state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            score([name], photo(300, 250))[name].float(), theirs(photo(300, 250))[:, 0]
        )


def test_every_network_has_a_writer_of_its_files() -> None:
    assert set(WRITERS) == set(NETWORKS)


def test_afine_takes_sides_that_32_does_not_divide_and_leaves_its_input_alone(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared))
    image, reference = photo(50, 65), noisy(photo(50, 65))
    before = image.clone(), reference.clone()
    found = score(["afine"], image, reference)["afine"]
    larger = (torch.nn.functional.interpolate(one, (64, 96), mode="bicubic") for one in before)
    assert torch.equal(found, metrics.network("afine", "cpu")(*larger).double().reshape(-1))
    assert torch.equal(image, before[0]) and torch.equal(reference, before[1])
    assert torch.equal(
        score(["afine"], image, image)["afine"], score(["afine"], image, image.clone())["afine"]
    )


def test_niqe_with_published_parameters_is_pyiqas(hub: Path) -> None:
    from pyiqa.archs.niqe_arch import NIQE

    weights.niqe(hub)
    image = photo(200, 220)
    expected = NIQE(pretrained_model_path=str(hub / "pyiqa/niqe_modelparameters.mat"))(
        image.double()
    )
    assert float(score(["niqe_pyiqa"], image)["niqe_pyiqa"]) == pytest.approx(
        float(expected), rel=1e-6
    )


def test_a_file_that_is_exchanged_is_read_again(hub: Path) -> None:
    weights.lpips(hub)
    image, reference = photo(), noisy(photo())
    first = score(["lpips_alex"], image, reference)["lpips_alex"]
    path = hub / "pyiqa/LPIPS_v0.1_alex-df73285e.pth"
    torch.save({name: 2 * value for name, value in torch.load(path).items()}, path)
    os.utime(path, ns=(0, 0))
    torch.testing.assert_close(score(["lpips_alex"], image, reference)["lpips_alex"], 2 * first)


class Payload:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_a_file_that_holds_code_is_refused_and_not_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (
        ("musiq", "pyiqa/musiq_koniq_ckpt-e95806b9.pth"),
        ("clipiqa", "clip/RN50.pt"),
        ("afine", "pyiqa/afine.pth"),
    ):
        torch.save({"weight": Payload()}, hub / file)
        reason = unusable([name])[name]
        assert (
            reason.startswith(f"{hub / file}: not a readable file of weights")
            and "\n" not in reason
        )
        (hub / file).write_bytes(pickle.dumps(Payload()))
        assert "not a readable file of weights" in unusable([name])[name]
    assert not (tmp_path / "unpickled").exists()


def test_a_file_cut_short_or_of_something_else_is_named(hub: Path) -> None:
    weights.lpips(hub)
    weights.musiq(hub)
    whole = (hub / "pyiqa/musiq_koniq_ckpt-e95806b9.pth").read_bytes()
    (hub / "pyiqa/musiq_koniq_ckpt-e95806b9.pth").write_bytes(whole[: len(whole) // 2])
    assert "not a readable file of weights" in unusable(["musiq"])["musiq"]
    lin = hub / "pyiqa/LPIPS_v0.1_alex-df73285e.pth"
    torch.save({"other.weight": torch.zeros(1)}, lin)
    assert unusable(["lpips_alex"])["lpips_alex"].startswith(f"{lin}: not the weights of LPIPS")
    torch.save({"other.weight": torch.zeros(1)}, hub / "pyiqa/musiq_koniq_ckpt-e95806b9.pth")
    assert "not the weights of MUSIQ" in unusable(["musiq"])["musiq"]
    torch.save([torch.zeros(1)], hub / "clip/RN50.pt")
    assert "holds list" in unusable(["clipiqa"])["clipiqa"]
    torch.save({"text_projection": torch.zeros(1)}, hub / "clip/RN50.pt")
    assert "not the weights of CLIP" in unusable(["clipiqa"])["clipiqa"]


def test_torchscript_is_opened_only_if_it_is_openais(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub / "clip/RN50.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), str(path))
    assert "TorchScript" in unusable(["clipiqa"])["clipiqa"]
    monkeypatch.setattr(networks, "CLIP_RN50_SHA256", networks.sha256(path))
    with pytest.warns(DeprecationWarning):
        assert set(networks._archive(path)) == {"weight", "bias"}


def test_nothing_stays_replaced(hub: Path) -> None:
    import timm
    import torchvision

    originals = timm.create_model, torchvision.models._api.load_state_dict_from_url
    weights.dists(hub)
    networks.build("dists", "cpu")
    with pytest.raises(ValueError, match=r"vgg16.* is missing"):
        (hub / "checkpoints/vgg16-397923af.pth").unlink()
        networks.build("dists", "cpu")
    assert (timm.create_model, torchvision.models._api.load_state_dict_from_url) == originals


@pytest.mark.parametrize(("kind", "pyiqa"), [("alex", "lpips"), ("vgg", "lpips-vgg")])
def test_lpips_has_pyiqas_values(hub: Path, kind: str, pyiqa: str) -> None:
    weights.lpips(hub, kind)
    image, reference = noisy(photo()), photo()
    expected = networks.build(pyiqa, "cpu")(image, reference).reshape(-1)
    found = lpips.build(kind, "cpu")(image, reference).reshape(-1)
    assert float(expected.min()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_torch_home_counts_as_it_stands_at_the_call_and_help_needs_no_torch(hub: Path) -> None:
    code = (
        "import sys, tasks.__main__ as cli; cli.build_parser('score'); sys.exit('torch' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert metrics.files("fid") == [hub / "pyiqa/pt_inception-2015-12-05-6726825d.pth"]


def test_the_page_has_every_metric_with_its_licences(root: Path) -> None:
    page = (root / "docs/metrics.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in page if line.startswith("| `")}
    assert rows.keys() == METRICS.keys()
    for name, row in METRICS.items():
        assert f"| {row.licence} |" in rows[name]
        for path, source in row.weights.items():
            assert Path(path).name in rows[name] and source.licence in rows[name]


def test_without_pyiqa_its_metrics_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdpo.metrics.score.importlib.util.find_spec", lambda name: None)
    assert "gdpo-sr[metrics]" in unusable(["vif"])["vif"]
    assert unusable(["gmsd", "piqe", "ms_ssim", "psnr_y", "entropy"]) == {}
    with pytest.raises(ValueError, match=r"metric musiq: pyiqa is not installed"):
        score(["musiq"], photo())


@pytest.mark.parametrize("name", ["maniqa_koniq", "maniqa_pipal"])
def test_a_maniqa_reads_the_file_that_pyiqa_trained_on_its_data(name: str) -> None:
    """pyiqa's own tables say which file a name loads."""
    from pyiqa.archs.maniqa_arch import default_model_urls
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    options = DEFAULT_CONFIGS[METRICS[name].pyiqa]["metric_opts"]
    data = name.removeprefix("maniqa_")
    assert options.get("train_dataset", "koniq") == data
    file = default_model_urls[data].rpartition("/")[2]
    assert [path.name for path in metrics.files(name)] == [file]
