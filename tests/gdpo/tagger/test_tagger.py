"""The tagger against RAM's definition, and the conversion of the released files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import resize

from gdpo.released.tagger import import_tagger
from gdpo.seeds import torch_generator
from gdpo.tagger.ram import RAM, Network
from gdpo.tagger.tagger import Tagger
from tests.gdpo.tagger.released_tagger import NAMES, Definition, checkpoint, dape


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Two pictures of another size than the network's."""
    return torch.rand((2, 3, 40, 52), generator=torch_generator("tagger", "image"))


def normalised(image: torch.Tensor) -> torch.Tensor:
    """As the release's torchvision does it, on tensors without antialiasing."""
    small = resize(image, [384, 384], InterpolationMode.BILINEAR, antialias=False)
    found: torch.Tensor = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(small)
    return found


def defined(
    image: torch.Tensor, model: dict[str, Any], lora: dict[str, torch.Tensor] | None
) -> torch.Tensor:
    definition = Definition(model["model"], lora)
    return torch.stack([definition.logits(one) for one in normalised(image)]).sigmoid()


def test_the_real_size_has_only_the_parameters_that_tagging_reads() -> None:
    with torch.device("meta"):
        network = Network(RAM)
    ram = sum(parameter.numel() for parameter in network.parameters())
    lora = sum(math.prod(shape) for shape in RAM.lora_shapes().values())
    assert (ram, lora, len(RAM.lora_shapes())) == (212_117_045, 622_592, 56)
    assert ram == sum(math.prod(shape) for shape in RAM.shapes().values())
    assert network(torch.empty((1, 3, 384, 384), device="meta")).shape == (1, 4585)


@pytest.mark.parametrize("with_dape", [False, True])
def test_the_converted_tagger_computes_what_the_definition_says(
    slim: Path, image: torch.Tensor, with_dape: bool
) -> None:
    expected = defined(image, checkpoint(), dape() if with_dape else None)
    found = Tagger.from_folder(slim, dape=with_dape).probabilities(image)
    assert found.shape == (2, len(NAMES)) and found.dtype == torch.float32
    assert float(expected.std()) > 0.02  # tags and images differ, so agreement says something
    torch.testing.assert_close(found, expected.float(), atol=2e-6, rtol=1e-5)


def test_dape_matters_unless_its_b_is_zero(
    released: Path, slim: Path, tmp_path: Path, image: torch.Tensor
) -> None:
    plain = Tagger.from_folder(slim, dape=False).probabilities(image)
    assert (
        float((Tagger.from_folder(slim, dape=True).probabilities(image) - plain).abs().max()) > 1e-3
    )
    torch.save(dape(zero=True), tmp_path / "zero.pth")
    import_tagger(released, tmp_path / "tagger", dape=tmp_path / "zero.pth")
    assert torch.equal(
        Tagger.from_folder(tmp_path / "tagger", dape=True).probabilities(image), plain
    )


def test_dape_leaves_the_keys_of_swin_alone(slim: Path) -> None:
    plain, adapted = (
        Tagger.from_folder(slim, dape=with_dape).network.swin.state_dict()
        for with_dape in (False, True)
    )
    changed = {name.split(".")[-2] for name in plain if not torch.equal(plain[name], adapted[name])}
    assert changed == {"q_proj", "v_proj"}


def test_tags_are_those_above_their_thresholds_in_the_order_of_the_list(
    slim: Path, image: torch.Tensor
) -> None:
    tagger = Tagger.from_folder(slim, dape=False)
    rows = tagger.probabilities(image)
    for row, text in zip(rows.tolist(), tagger.tags(image), strict=True):
        limits = [0.5, 0.65, 0.5, 0.3, 0.8, 1.0]
        assert text == ", ".join(
            n for n, p, limit in zip(NAMES, row, limits, strict=True) if p > limit
        )
    at_the_limit = Tagger(tagger.network, NAMES, rows[0])
    assert at_the_limit.tags(image[:1]) == [""]
    assert Tagger(tagger.network, NAMES, rows[0] - 1e-6).tags(image[:1]) == [", ".join(NAMES)]


def test_what_else_is_in_the_batch_changes_no_bit(slim: Path, image: torch.Tensor) -> None:
    tagger = Tagger.from_folder(slim, dape=True)
    alone = torch.cat([tagger.probabilities(one) for one in image.flip(0).split(1)]).flip(0)
    assert torch.equal(tagger.probabilities(image), alone)


def test_half_precision_is_close(slim: Path, image: torch.Tensor) -> None:
    full = Tagger.from_folder(slim, dape=True).probabilities(image)
    half = Tagger.from_folder(slim, dape=True, dtype=torch.bfloat16).probabilities(image)
    assert half.dtype == torch.float32 and 0 < float((half - full).abs().max()) < 0.05


def test_vision_multi_is_the_tagging_head(released: Path, slim: Path, tmp_path: Path) -> None:
    model = checkpoint()
    model["model"] = {
        name.replace("tagging_head", "vision_multi"): value
        for name, value in model["model"].items()
    }
    torch.save(model, tmp_path / "old.pth")
    for name in ("ram_tag_list.txt", "ram_tag_list_threshold.txt"):
        (tmp_path / name).write_bytes(released.with_name(name).read_bytes())
    notes = import_tagger(tmp_path / "old.pth", tmp_path / "tagger")
    assert notes == ("without DAPE this folder tags HR images only; inference needs it",)
    assert sorted(path.name for path in (tmp_path / "tagger").iterdir()) == [
        "tagger.safetensors",
        "tags.json",
    ]
    assert (tmp_path / "tagger/tagger.safetensors").read_bytes() == (
        slim / "tagger.safetensors"
    ).read_bytes()
    with pytest.raises(
        ValueError,
        match=r"dape.safetensors: no such file; `gdpo-sr import-weights ram_swin_large_14m.pth",
    ):
        Tagger.from_folder(tmp_path / "tagger", dape=True)


@pytest.mark.parametrize("window", [4, 7, 24])
def test_bias_tables_of_another_window_are_interpolated(
    released: Path, tmp_path: Path, window: int
) -> None:
    from scipy.interpolate import make_interp_spline
    from scipy.optimize import brentq

    torch.save(checkpoint(window=window), tmp_path / "other.pth")
    import_tagger(
        tmp_path / "other.pth",
        tmp_path / "tagger",
        tags=released.with_name("ram_tag_list.txt"),
        thresholds=released.with_name("ram_tag_list_threshold.txt"),
    )
    name = "visual_encoder.layers.3.blocks.1.attn.relative_position_bias_table"
    found = load_file(tmp_path / "tagger/tagger.safetensors")[name]
    assert found.shape == (23**2, 4)
    half = window - 1
    # The ratio of growing distances that reach 11; the release looks for it between 1.01 and 1.5
    # only.
    q = min(max(brentq(lambda ratio: sum(ratio**i for i in range(half)) - 11, 0.5, 3), 1.01), 1.5)
    right = [sum(q**i for i in range(n + 1)) for n in range(half)]
    known = [-position for position in reversed(right)] + [0.0, *right]
    wanted = [min(max(float(position), known[0]), known[-1]) for position in range(-11, 12)]
    table = (
        checkpoint(window=window)["model"][name]
        .double()
        .reshape(2 * window - 1, 2 * window - 1, 4)
        .numpy()
    )
    rows = make_interp_spline(known, table, k=3, axis=0)(wanted)
    expected = (
        torch.from_numpy(make_interp_spline(known, rows, k=3, axis=1)(wanted))
        .float()
        .reshape(-1, 4)
    )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)  # its bisection ends at 1e-6


def test_the_checkpoint_is_mapped_and_not_read(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    load = torch.load

    def noted(*args: Any, **options: Any) -> Any:
        seen.append(options)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", noted)
    import_tagger(released, tmp_path / "tagger", dape=released.with_name("DAPE.pth"))
    assert len(seen) == 2 and all(options["mmap"] and options["weights_only"] for options in seen)


def test_the_old_format_of_torch_save_is_read_too(
    released: Path, slim: Path, tmp_path: Path
) -> None:
    torch.save(dape(), tmp_path / "DAPE.pth", _use_new_zipfile_serialization=False)
    import_tagger(released, tmp_path / "tagger", dape=tmp_path / "DAPE.pth")
    assert (tmp_path / "tagger/dape.safetensors").read_bytes() == (
        slim / "dape.safetensors"
    ).read_bytes()


def test_a_trained_lora_on_the_tied_tag_encoder_is_told(released: Path, tmp_path: Path) -> None:
    lora = dape()
    lora["tag_encoder.encoder.layer.2.crossattention.self.key.lora_B"] += (
        1  # not one of the two tied layers
    )
    torch.save(lora, tmp_path / "DAPE.pth")
    assert import_tagger(released, tmp_path / "a", dape=tmp_path / "DAPE.pth") == ()
    lora["tag_encoder.encoder.layer.1.crossattention.self.key.lora_B"] += 1
    torch.save(lora, tmp_path / "DAPE.pth")
    (note,) = import_tagger(released, tmp_path / "b", dape=tmp_path / "DAPE.pth")
    assert (
        "left out tag_encoder.encoder.layer.1.crossattention.self.key.lora_B, which is not zero"
        in note
    )
