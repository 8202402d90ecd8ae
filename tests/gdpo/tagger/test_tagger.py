"""The tagger against RAM's definition, and the conversion of the released files."""

import math
from collections.abc import Callable
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
from tests.gdpo.tagger.released_tagger import NAMES, Definition, checkpoint, dape, write


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four released files, very small; the checkpoint's path."""
    return write(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def slim(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "tagger"
    assert import_tagger(released, target, dape=released.with_name("DAPE.pth")) == ()
    return target


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


class Foreign:
    """What no weights file needs."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (print, ("run",))


FIRST = "visual_encoder.layers.0.blocks.0.attn.qkv"


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.pop(name)


def put(name: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.weight"), "tensor 'fc.weight' is missing"),
        (without("label_embed"), "tensor 'label_embed' is missing"),
        (without(f"{FIRST}.bias"), f"tensor '{FIRST}.bias' is missing"),
        (
            without("visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table"),
            "bias_table' is missing",
        ),
        (
            put("visual_encoder.absolute_pos_embed", torch.zeros(1)),
            "tensor 'visual_encoder.absolute_pos_embed' is extra",
        ),
        (put("reweight_scale", torch.zeros(1)), "tensor 'reweight_scale' is extra"),
        (
            put("vision_multi.encoder.layer.0.output.dense.bias", torch.zeros(16)),
            "another tensor that is renamed",
        ),
        (
            put("image_proj.weight", torch.zeros(8, 9)),
            r"'image_proj.weight' has shape \(8, 9\), .* imply \(8, 32\)",
        ),
        (
            put("fc.weight", torch.full((1, 16), math.nan)),
            "'fc.weight' has values that are NaN or infinite",
        ),
        (
            put("fc.weight", torch.ones((1, 16), dtype=torch.long)),
            "'fc.weight' is not a tensor of floating-point numbers",
        ),
        (put("fc.weight", "text"), "'fc.weight' is not a tensor"),
        (
            put(
                "visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table",
                torch.zeros(16, 1),
            ),
            "no square of an odd",
        ),
    ],
)
def test_a_checkpoint_that_is_not_rams_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    model = checkpoint()
    change(model["model"])
    source = write(tmp_path, model)
    with pytest.raises(ValueError, match=message) as caught:
        import_tagger(source, tmp_path / "tagger")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tagger").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{FIRST}.lora_A"), f"tensor '{FIRST}.lora_A' is missing"),
        (
            without("tagging_head.encoder.layer.1.crossattention.self.key.lora_B"),
            "self.key.lora_B' is missing",
        ),
        (
            put("visual_encoder.layers.0.blocks.0.mlp.fc1.lora_A", torch.zeros(8, 4)),
            "fc1.lora_A' is extra",
        ),
        (put("params", {}), "key 'params' is extra; DAPE's file holds LoRA only"),
        (put(f"{FIRST}.lora_A", torch.zeros(8, 4)), f"'{FIRST}.lora_A' has rank 4, DAPE's is 8"),
        (put(f"{FIRST}.lora_B", torch.zeros(8, 4)), f"'{FIRST}.lora_B' has rank 4, DAPE's is 8"),
        (
            put(f"{FIRST}.lora_B", torch.zeros(12, 8)),
            r"lora_B' has shape \(12, 8\), .* imply \(8, 8\)",
        ),
        (
            put(f"{FIRST}.lora_B", torch.full((8, 8), math.inf)),
            "lora_B' has values that are NaN or infinite",
        ),
    ],
)
def test_a_file_that_is_not_dapes_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    lora = dape()
    change(lora)
    source = write(tmp_path, lora=lora)
    with pytest.raises(ValueError, match=message) as caught:
        import_tagger(source, tmp_path / "tagger", dape=tmp_path / "DAPE.pth")
    assert str(tmp_path / "DAPE.pth") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tagger").exists()


@pytest.mark.parametrize("name", ["ram_swin_large_14m.pth", "DAPE.pth"])
def test_a_file_with_a_foreign_global_is_refused_and_not_run(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path)
    torch.save({"model": Foreign()}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: refused, .*print"):
        import_tagger(source, tmp_path / "tagger", dape=tmp_path / "DAPE.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ram_tag_list.txt", "grass\nsky\n", "has 2 lines, the checkpoint has 6 tags"),
        ("ram_tag_list.txt", "a\nb\n\nd\ne\nf\n", "line 3 is empty"),
        (
            "ram_tag_list.txt",
            None,
            "no such file; ram/data of the repository xinyu1205/recognize-anything has it",
        ),
        ("ram_tag_list_threshold.txt", None, "no such file"),
        (
            "ram_tag_list_threshold.txt",
            "0.5\n0.5\nhigh\n0.5\n0.5\n0.5\n",
            "line 3 is 'high', not a probability",
        ),
        (
            "ram_tag_list_threshold.txt",
            "0.5\n65\n0.5\n0.5\n0.5\n0.5\n",
            "line 2 is '65', not a probability",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    source = write(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        import_tagger(source, tmp_path / "tagger")


def damage(file: str, content: str | bytes | None) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return run


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tags.json", None, "tags.json: no such file; `gdpo-sr import-weights"),
        ("tagger.safetensors", None, "tagger.safetensors: no such file; `gdpo-sr"),
        ("tagger.safetensors", b"broken", "tagger.safetensors: unreadable"),
        ("dape.safetensors", b"", "dape.safetensors: unreadable"),
        ("tags.json", "{", "tags.json: not a list of tags and thresholds"),
        (
            "tags.json",
            '{"tags": ["a"], "thresholds": [0.5]}',
            "tags.json: lists 1 tags, tagger.safetensors has 6",
        ),
        (
            "tags.json",
            '{"tags": ["a", "b"], "thresholds": [0.5]}',
            "tags.json: lists 2 tags and 1 thresholds",
        ),
        ("tags.json", '{"tags": ["a"], "thresholds": ["high"]}', "tags.json: not a list of tags"),
        ("tags.json", "[]", "tags.json: not a list of tags"),
    ],
)
def test_a_damaged_folder_is_refused(
    slim: Path, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    for path in slim.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(file, content)(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Tagger.from_folder(tmp_path, dape=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 8, 8), "image must have shape BCHW"),
        (torch.rand(1, 1, 8, 8), "image must have 3 channels"),
        (torch.full((1, 3, 8, 8), 2.0), r"image must lie in \[0, 1\]"),
        (torch.full((1, 3, 8, 8), math.nan), "image has values that are NaN"),
        (torch.zeros((1, 3, 8, 8), dtype=torch.uint8), "image must be a floating-point tensor"),
        ("photo.jpg", "image must be a torch.Tensor"),
    ],
)
def test_bad_images_are_refused(slim: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tagger.from_folder(slim, dape=False).tags(bad)
