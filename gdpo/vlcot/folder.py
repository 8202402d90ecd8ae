"""The folders of the second system: a tokenizer, and a whole model.

    tokenizer/   codebook.safetensors, vae/ (diffusers' layout)
    MODEL/       model.json (kind vlcot), trunk.safetensors, tokenizer/

A model folder needs nothing outside it. Weights are safetensors only; the card names the SHA-256 of
each file, and loading checks it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig

from gdpo.config.fields import Count, Hash
from gdpo.config.vlcot import Decoding, Stages, Vlcot
from gdpo.errors import one_line
from gdpo.files import sha256, written_aside
from gdpo.model.base import check_weight
from gdpo.model.card import NAME, Identity, read_as
from gdpo.vlcot import vocabulary
from gdpo.vlcot.describe import WORDS
from gdpo.vlcot.llamagen import check_state
from gdpo.vlcot.tokenizer import TinyTokenizer
from gdpo.vlcot.trunk import Trunk, fresh, tiny_config
from gdpo.vlcot.vocabulary import Vocabulary
from gdpo.vlcot.words import LEVELS, NAMES, RESIZES

CODEBOOK, TRUNK = "codebook.safetensors", "trunk.safetensors"
TEXTS = (NAME, "card.json", "README.md")  # the last two: of a model that ships, for people
IDENTITIES = {
    "coldstart": Identity(kind="vlcot", label="RealSR-R1 cold start", role="baseline"),
    "vlcot": Identity(kind="vlcot", label="RealSR-R1", role="reward"),
    "control": Identity(kind="vlcot", label="RealSR-R1 control", role="control"),
}


class Card(Identity):
    """The content of model.json. scale: the enlargement that the model is trained for. sha256: of
    every other file of the folder.

    The other keys: as in the section `vlcot` of the parameters.
    """

    kind: Literal["vlcot"]
    format: Literal[1]
    scale: Count
    stages: Stages
    prompt_side: Count | None
    evidence: bool
    width: Count
    layers: Count
    heads: Count
    positions: Count
    decoding: Decoding
    sha256: dict[str, Hash]

    @classmethod
    def of(cls, identity: Identity, settings: Vlcot, scale: int) -> "Card":
        """The card of a model that is trained with `settings`."""
        names = (
            "stages",
            "prompt_side",
            "evidence",
            "width",
            "layers",
            "heads",
            "positions",
            "decoding",
        )
        values = {name: getattr(settings, name) for name in names}
        return cls(**identity.model_dump(), format=1, scale=scale, sha256={}, **values)

    def damages(self, folder: Path) -> list[str]:
        """A line for each file of `folder` that is missing, surplus or not the one named here."""
        present = _hashes(folder)
        return [
            f"{folder / name}: is not the file that {folder / NAME} names; make or fetch the model "
            "again"
            for name in sorted(self.sha256.keys() | present.keys())
            if self.sha256.get(name) != present.get(name)
        ]


@dataclass(frozen=True)
class Model:
    """A model that is ready to run."""

    card: Card
    vocabulary: Vocabulary
    tokenizer: TinyTokenizer
    trunk: Trunk


def save_tokenizer(folder: Path, tokenizer: TinyTokenizer) -> None:
    """Write a tokenizer to `folder`, which does not exist yet."""
    folder.mkdir()
    # diffusers would store where the VAE was read from.
    tokenizer.vae.register_to_config(_name_or_path="")
    tokenizer.vae.save_pretrained(folder / "vae")
    save_file({"codebook": tokenizer.codebook.cpu().contiguous()}, folder / CODEBOOK)


def load_tokenizer(folder: Path) -> TinyTokenizer:
    """A tokenizer, in fp32. Errors: ValueError naming the file that is missing or wrong."""
    state = _tensors(folder / CODEBOOK)
    if state.keys() != {"codebook"}:
        raise ValueError(f"{folder / CODEBOOK}: must have the tensor codebook and no other")
    try:
        return TinyTokenizer(load_vae(folder / "vae"), state["codebook"].float())
    except ValueError as error:
        raise ValueError(f"{folder}: {one_line(error)}") from error


def load_vae(folder: Path) -> AutoencoderKL:
    """A VAE in diffusers' layout, in fp32 and frozen. Errors: ValueError naming the folder."""
    try:
        vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        why = one_line(error, first=True)
        raise ValueError(f"{folder}: not a VAE in diffusers' layout ({why})") from error
    return vae.float().eval().requires_grad_(False)


def vocabulary_of(
    tokenizer: TinyTokenizer, stages: list[int], prompt_side: int | None = None
) -> Vocabulary:
    """The vocabulary of a tokenizer: the words of degradations and descriptions, then its codes.

    Errors: ValueError for stages that are no multiples of the tokenizer's factor.
    """
    if any(side % tokenizer.factor for side in stages):
        raise ValueError(
            f"vlcot.stages must be multiples of the tokenizer's {tokenizer.factor} pixels, "
            f"got {stages}"
        )
    words = (*LEVELS, *NAMES, *RESIZES, *WORDS)
    sides = (stages[0], stages[1], stages[2])
    return vocabulary.tiny(words, tokenizer.codes, sides, tokenizer.factor, prompt_side)


def new_trunk(settings: Vlcot, words: Vocabulary, seed: int) -> Trunk:
    """A trunk with new weights. Errors: ValueError for a width that the heads do not divide."""
    return fresh(_config(settings, words), seed)


def started_trunk(settings: Vlcot, folder: Path) -> Trunk:
    """The trunk of the model folder that `vlcot.init` names.

    Errors: ValueError naming the key that differs from what that model was trained with.
    """
    model = load_model(folder)
    for name in ("stages", "prompt_side", "evidence", "width", "layers", "heads", "positions"):
        mine, its = getattr(settings, name), getattr(model.card, name)
        if mine != its:
            raise ValueError(f"vlcot.{name} must be {its}, that of vlcot.init {folder}, got {mine}")
    return model.trunk


def _config(settings: Vlcot | Card, words: Vocabulary) -> ChameleonConfig:
    if settings.width % (2 * settings.heads):
        raise ValueError(
            f"vlcot.width must be a multiple of twice vlcot.heads, got {settings.width} and "
            f"{settings.heads}"
        )
    evidence = {"stages": list(words.stages), "factor": words.factor}
    return tiny_config(
        words.size,
        evidence=evidence if settings.evidence else None,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        positions=settings.positions,
    )


def save_model(folder: Path, card: Card, trunk: Trunk, tokenizer: Path) -> None:
    """Write a model folder, aside and then renamed. tokenizer: its folder, which is copied."""
    with written_aside(folder) as part:
        part.mkdir()
        tensors = {name: t.detach().cpu().contiguous() for name, t in trunk.state_dict().items()}
        save_file({name: tensors[name] for name in sorted(tensors)}, part / TRUNK)
        # A copy and not a path: the codes mean nothing without this very codebook.
        shutil.copytree(tokenizer, part / "tokenizer")
        card.model_copy(update={"sha256": _hashes(part)}).write(part)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a model folder but its cards, by relative path."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: sha256(path) for name, path in files.items() if path.is_file() and name not in TEXTS
    }


def load_model(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """A model folder, on `device`. dtype: of the trunk.

    Errors: ValueError naming the file and its defect, such as a codebook of another size than the
    trunk was trained with.
    """
    card = read_as(Card, folder)
    if damages := card.damages(folder):
        raise ValueError(damages[0])
    tokenizer = load_tokenizer(folder / "tokenizer")
    try:
        words = vocabulary_of(tokenizer, card.stages, card.prompt_side)
        config = _config(card, words)
    except ValueError as error:
        raise ValueError(f"{folder / NAME}: {error}") from error
    state = _tensors(folder / TRUNK)
    for name, tensor in state.items():
        check_weight(folder / TRUNK, name, tensor)
    ids = len(state.get("lm_head.weight", ()))
    # Shapes alone would load: the ids of another codebook mean other patches, so every image would
    # be noise.
    if ids and ids != words.size:
        raise ValueError(
            f"{folder / TRUNK}: has {ids} ids, and its tokenizer of {tokenizer.codes} codes makes "
            f"{words.size}; they belong to different trainings"
        )
    # Before the trunk is built: a card that states a billion layers would be built for ever.
    layers = {name.split(".")[2] for name in state if name.startswith("model.layers.")}
    if len(layers) != card.layers:
        raise ValueError(f"{folder / NAME}: layers is {card.layers}, and {TRUNK} has {len(layers)}")
    with torch.device("meta"):
        trunk = Trunk(config)
    check_state(folder / TRUNK, state, trunk)
    trunk.load_state_dict(state, assign=True)
    # Not among the tensors: it was made on the meta device as well.
    trunk.model.rotary_emb = type(trunk.model.rotary_emb)(config)
    return Model(card, words, tokenizer.to(device), trunk.eval().to(device, dtype))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; train or fetch the model again") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: unreadable ({one_line(error)})") from error
