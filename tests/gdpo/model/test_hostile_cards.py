"""Model folders from strangers: a mutated card is read, or refused in one line that names it; no
file of a model is ever unpickled.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config import Lora
from gdpo.config.vlcot import Vlcot
from gdpo.model.adapters import unet_targets
from gdpo.model.card import IDENTITIES, NAME, Card, read_card, read_identity
from gdpo.model.checkpoints import Adapters, read_folder, save_model
from gdpo.upscale.resolver import load_super_resolver
from gdpo.vlcot import folder as folders
from gdpo.vlcot.folder import Card as VlcotCard
from gdpo.vlcot.folder import read_as
from gdpo.vlcot.tokenizer import TinyTokenizer
from tests import tiny
from tests.tasks.vlcot_root import SECTIONS

CARD: dict[str, Any] = {
    **IDENTITIES["gdpo"].model_dump(),
    "format": 1,
    "base": "../base",
    "base_sha256": {"unet/config.json": "0" * 64},
    "t_add": 250,
    "t_diff": 100,
    "prompt": "sharp",
    "adapters": [{"file": "gdpo.safetensors", "rank": 4, "alpha": 8, "sha256": "0" * 64}],
}
VLCOT: dict[str, Any] = {
    **{"kind": "vlcot", "label": "L", "role": "reward", "format": 1, "scale": 4},
    **{
        "stages": [8, 16, 32],
        "prompt_side": 32,
        "evidence": False,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "positions": 400,
    },
    "decoding": {"temperature": 0.7, "guidance": 1.0, "text_top_k": 1, "image_top_k": None},
    "sha256": {"trunk.safetensors": "0" * 64},
}
READERS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "naosd": (CARD, read_card),
    "vlcot": (VLCOT, lambda folder: read_as(VlcotCard, folder)),
}
# JSON texts in the place of a value. Those of the first line are of a wrong type or range anywhere.
WRONG = ("-1", "NaN", "Infinity", "-Infinity", "1e999", "[null]", "[[[[1]]]]", '{"a": {"b": 1}}')
ODD = (
    '"../../../../etc/passwd"',
    '"<script>alert(1)</script>"',
    '"a\\u0000b"',
    '"\\ud800"',
    '""',
    "null",
    "true",
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def replaced(tree: dict[str, Any], path: tuple[Any, ...], text: str) -> str:
    """The card as JSON with the JSON `text` at `path`."""
    copy = json.loads(json.dumps(tree))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "@@"
    return json.dumps(copy).replace('"@@"', text)


def refusal(folder: Path, read: Callable[[Path], object]) -> str | None:
    """What is said about the card of `folder`; None if it is taken."""
    try:
        read(folder)
    except ValueError as error:
        message = str(error)
        assert (
            message.startswith(f"{folder / NAME}: ") and "\n" not in message and len(message) < 1000
        ), message
        return message
    return None


@pytest.mark.parametrize("kind", READERS)
def test_a_wrong_value_anywhere_is_refused_with_its_key(kind: str, tmp_path: Path) -> None:
    card, read = READERS[kind]
    (tmp_path / NAME).write_text(json.dumps(card))
    assert refusal(tmp_path, read) is None
    cases = [(path, text) for path in places(card) for text in WRONG]
    for path, text in cases:
        (tmp_path / NAME).write_text(replaced(card, path, text))
        message = refusal(tmp_path, read)
        assert message is not None and str(path[0]) in message, (path, text)
    for path in places(card):
        for text in ODD:  # some are texts like any other
            (tmp_path / NAME).write_text(replaced(card, path, text))
            refusal(tmp_path, read)
    assert len(cases) >= 120


@pytest.mark.parametrize("kind", READERS)
def test_flipped_and_cut_bytes_are_refused_or_change_a_text(kind: str, tmp_path: Path) -> None:
    card, read = READERS[kind]
    whole, rng = json.dumps(card).encode(), np.random.default_rng(0)
    refused = 0
    for number in range(120):
        data = bytearray(whole)
        start = int(rng.integers(len(data)))
        if number % 3 == 0:
            del data[start:]
        elif number % 3 == 1:
            data[start] ^= 1 << int(rng.integers(8))
        else:
            data[start : start + 4] = rng.bytes(4)
        (tmp_path / NAME).write_bytes(data)
        refused += refusal(tmp_path, read) is not None
    assert refused > 60


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x00", b"\xff\xfe{\x00}\x00", b"null", b"[]", b"{", b"1" * 5000, b'{"kind": 1}'),
        *(
            b"[" * 200_000,
            b'{"a":' * 200_000,
            pickle.dumps(CARD),
            b'{"format": %s}' % (b"9" * 5000),
        ),
    ],
)
def test_a_file_that_can_be_no_card_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    for read in (read_identity, read_card):
        assert refusal(tmp_path, read) is not None


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


def test_a_pickle_or_a_path_outside_in_the_place_of_weights(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.model()
    module = unet_targets(model.unet)[0]
    weight = model.unet.get_submodule(module).weight
    tensors = {
        f"unet.{module}.lora_A": weight.new_zeros(2, *weight.shape[1:]),
        f"unet.{module}.lora_B": weight.new_zeros(weight.shape[0], 2, *[1] * (weight.ndim - 2)),
    }
    own = [Adapters("gdpo", tensors, Lora(rank=2, alpha=4))]
    save_model(
        tmp_path / "gdpo", tiny_base, own, IDENTITIES["gdpo"], t_add=250, t_diff=100, prompt=""
    )
    read_folder(tmp_path / "gdpo")
    card: Card = read_card(tmp_path / "gdpo")
    (entry,) = card.adapters
    (tmp_path / "gdpo/gdpo.safetensors").write_bytes(pickle.dumps(Evil()))
    card.model_copy(update={"adapters": [entry.model_copy(update={"sha256": None})]}).write(
        tmp_path / "gdpo"
    )
    with pytest.raises(ValueError, match=r"gdpo\.safetensors: "):
        read_folder(tmp_path / "gdpo")
    for file in ("../gdpo.safetensors", str(tmp_path / "x.safetensors"), "sub/x.safetensors"):
        card.model_copy(update={"adapters": [entry.model_copy(update={"file": file})]}).write(
            tmp_path / "gdpo"
        )
        with pytest.raises(ValueError, match=r"model\.json: adapter file .* is not inside"):
            read_card(tmp_path / "gdpo")
    assert not (tmp_path / "evil").exists()


def test_a_card_with_absurd_sizes_takes_no_memory_and_no_time(
    vlcot_card: Path, tmp_path: Path
) -> None:
    for key, value in (
        ("layers", 10**9),
        ("width", 4 * 10**6),
        ("stages", [8, 16, 10**6]),
        ("stages", [8]),
    ):
        folder = Path(shutil.copytree(vlcot_card, tmp_path / f"{key}-{value}", symlinks=True))
        content = json.loads((folder / NAME).read_text())
        (folder / NAME).write_text(json.dumps({**content, key: value}))
        with pytest.raises(ValueError, match=r"model\.json: |trunk\.safetensors: "):
            load_super_resolver(folder)


@pytest.fixture
def vlcot_card(tmp_path: Path) -> Path:
    """A model folder of kind vlcot with random weights."""
    settings = Vlcot.model_validate(SECTIONS["vlcot"])
    tokenizer = TinyTokenizer(tiny.vae(), torch.randn(16, 16))
    folders.save_tokenizer(tmp_path / "tokenizer", tokenizer)
    words = folders.vocabulary_of(tokenizer, settings.stages)
    card = VlcotCard.of(folders.IDENTITIES["vlcot"], settings, 4)
    trunk = folders.new_trunk(settings, words, 0)
    folders.save_model(tmp_path / "vlcot", card, trunk, tmp_path / "tokenizer")
    load_super_resolver(tmp_path / "vlcot")
    return tmp_path / "vlcot"
