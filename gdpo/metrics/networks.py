"""Build pyiqa's metrics from local files, without downloads and without unpickling code.

pyiqa itself downloads missing files, into a folder chosen when pyiqa is imported, and unpickles
them. While a metric is built here, these functions of pyiqa's modules are replaced by ours:

    load_pretrained_network     musiq, topiq, maniqa, lpips, dists, inception: read from
                                $TORCH_HOME/hub/pyiqa, weights only, and checked
    load_state_dict_from_url    torchvision's AlexNet and VGG16: likewise, from
                                $TORCH_HOME/hub/checkpoints
    load (CLIP)                 clipiqa: OpenAI's archive if its SHA-256 is the published one, else
                                a weights-only file
                                afine: the fine-tuned CLIP inside afine.pth, so OpenAI's ViT-B/32 is
                                not needed
    load_file_from_url,         brisque: its two tensors, from the same folder
    torch.load
    timm.create_model           topiq:  no download of an ImageNet ResNet, and
                                maniqa: no download of an ImageNet ViT, which the checkpoint of
                                maniqa overwrites anyway

TORCH_HOME is read at every call. The caller checks for missing files first
(metrics.check_available).
"""

import contextlib
import importlib
import importlib.util
import io
import pickle
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import packaging.version
import torch
from torch import nn

from gdpo.errors import one_line
from gdpo.files import sha256

_LOAD = torch.load  # replaced while BRISQUE is built
# OpenAI's archive holds TorchScript, which is code, so only the published file is opened.
CLIP_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"


def hub() -> Path:
    """torch.hub's folder, which holds all weights in subfolders."""
    return Path(torch.hub.get_dir())


def build(pyiqa_name: str, device: torch.device | str, **options: Any) -> nn.Module:
    """pyiqa's metric of that name as a module in evaluation mode, on the device.

    Its weights come from `hub()`. The module lacks pyiqa's wrapper, whose range check would copy
    every batch to the CPU.
    Errors: ValueError naming a file that is missing or has other content than its name says.
    """
    if pyiqa_name.startswith("afine"):
        options["pretrained_model_path"] = str(_present(hub() / "pyiqa" / "afine.pth"))
    if pyiqa_name == "niqe":
        options["pretrained_model_path"] = str(
            _present(hub() / "pyiqa" / "niqe_modelparameters.mat")
        )
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        offline(_ARCH.get(pyiqa_name, "")),
    ):
        warnings.simplefilter("ignore")  # deprecated names, and a file left open
        metric = importlib.import_module("pyiqa").create_metric(
            pyiqa_name, device=torch.device(device), **options
        )
    network: Any = metric.net.eval()
    # pyiqa keeps some tensors as plain attributes and would copy them to the device at each call.
    for part in network.modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.to(device))
    if pyiqa_name.startswith("maniqa"):
        # pyiqa's hooks keep the output of every block until its `forward` clears them, and
        # gdpo/metrics/maniqa.py does not call that `forward`.
        network.save_output.outputs = deque(maxlen=0)
    module: nn.Module = network.requires_grad_(False)
    return module


@contextlib.contextmanager
def offline(arch: str) -> Iterator[None]:
    """Replace the functions of `pyiqa.archs.<arch>` that download or unpickle, inside the block."""
    if arch == "clipiqa_arch":
        _import_clip()
    with contextlib.ExitStack() as stack:
        for module, name, replacement in _REPLACED.get(arch, ()):
            stack.enter_context(_replaced(importlib.import_module(module), name, replacement))
        yield


def _import_clip() -> None:
    """Import openai-clip without pkg_resources, which setuptools no longer has since version 82.

    openai-clip imports `packaging` from it, for one comparison of versions.
    """
    if "clip" in sys.modules or importlib.util.find_spec("pkg_resources"):
        return
    stand_in: Any = ModuleType("pkg_resources")
    stand_in.packaging = packaging
    sys.modules["pkg_resources"] = stand_in
    try:
        importlib.import_module("clip")
    finally:
        # Removed again: other packages take its presence for that of the real one.
        del sys.modules["pkg_resources"]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def read_backbone(features: nn.Module, path: Path, metric: str) -> None:
    """Read the convolutions of torchvision's AlexNet or VGG16 into `features`.

    Errors: ValueError naming the file if it is missing, broken or of another network.
    """
    prefix = "features."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in read_weights(path).items()
        if prefix in name
    }
    try:
        features.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of {metric}'s backbone") from error


def read_weights(path: Path) -> dict[str, Any]:
    """The weights in a .pth or .pt file by name, tensors only.

    Errors: ValueError naming a file that is missing, truncated, or holds code.
    """
    _present(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's message, which advises to load the file without weights_only.
        what = "no file of torch's, or one that holds more than tensors"
        raise ValueError(
            f"{path}: not a readable file of weights ({what}); fetch it again"
        ) from error
    except Exception as error:  # a broken file can raise any type of error inside torch
        raise ValueError(
            f"{path}: not a readable file of weights ({one_line(error, first=True)}); fetch "
            "it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds {type(content).__name__}, not weights by name; fetch it again"
        )
    return content


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing; put it into {path.parent}")
    return path


def _load_pretrained(
    network: nn.Module, url: str, strict: bool = True, weight_keys: str | None = None
) -> None:
    """Replaces pyiqa's load_pretrained_network."""
    # The name alone: where the file would have come from does not matter offline.
    path = hub() / "pyiqa" / Path(urlparse(url).path).name
    state = read_weights(path)
    state = state[weight_keys] if weight_keys else state
    # Some of the files were saved from a model inside DataParallel.
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        result = network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not the weights of {type(network).__name__} ({one_line(error, first=True)})"
        ) from error
    # LPIPS and DISTS load without `strict`, as their backbones are in other files. The weights of
    # another network would then be ignored silently.
    if len(result.unexpected_keys) == len(state):
        raise ValueError(f"{path}: not the weights of {type(network).__name__} (none of its names)")


def _backbone(url: str, *_: Any, **__: Any) -> dict[str, Any]:
    """Replaces torchvision's load_state_dict_from_url."""
    return read_weights(hub() / "checkpoints" / Path(urlparse(url).path).name)


def _clip(name: str, *_: Any, **__: Any) -> nn.Module:
    """Replaces the CLIP loader of clipiqa; `name` is always RN50."""
    path = hub() / "clip" / f"{name}.pt"
    return _clip_model("pyiqa.archs.clip_model", path, clip_state(path))


def clip_state(path: Path) -> dict[str, Any]:
    """The weights of CLIP by name, from OpenAI's archive or from a file of plain weights.

    Errors: ValueError naming the file that is missing or broken.
    """
    is_published = sha256(_present(path)) == CLIP_RN50_SHA256
    return _archive(path) if is_published else read_weights(path)


def _archive(path: Path) -> dict[str, Any]:
    return dict(torch.jit.load(str(path), map_location="cpu").state_dict())


def _afine_clip(*_: Any, **__: Any) -> tuple[nn.Module, None]:
    """Replaces the CLIP loader of afine; afine.pth has the weights."""
    path = hub() / "pyiqa" / "afine.pth"
    return _clip_model(
        "pyiqa.archs.afineclip_model", path, dict(read_weights(path).get("finetuned_clip", {}))
    ), None


def _clip_model(module: str, path: Path, state: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = importlib.import_module(module).build_model(state).float()
    except (KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{path}: not the weights of CLIP ({one_line(error, first=True)})"
        ) from error
    return model


def _in_hub(url: str, *_: Any, **__: Any) -> str:
    """Replaces pyiqa's load_file_from_url: the file's place here."""
    return str(_present(hub() / "pyiqa" / Path(urlparse(url).path).name))


def _two_tensors(path: str, **_: Any) -> Any:
    """Replaces torch.load in BRISQUE, whose file holds coefficients and support vectors."""
    try:
        content = _LOAD(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise any type of error inside torch
        raise ValueError(f"{path}: not a readable file of weights; fetch it again") from error
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise ValueError(f"{path}: not the weights of BRISQUE")
    return content


def _no_pretraining(name: str, *args: Any, **options: Any) -> Any:
    """Replaces timm.create_model, without its download."""
    from timm.models import create_model

    return create_model(name, *args, **{**options, "pretrained": False})


_ARCH = {
    "musiq": "musiq_arch",
    "topiq_nr": "topiq_arch",
    "brisque": "brisque_arch",
    "maniqa": "maniqa_arch",
    "maniqa-pipal": "maniqa_arch",
    "afine_all_scale": "afine_arch",
    # What tests hold our own networks to.
    "lpips": "lpips_arch",
    "lpips-vgg": "lpips_arch",
    "dists": "dists_arch",
    "clipiqa": "clipiqa_arch",
    "fid": "inception",
}
_TORCHVISION = ("torchvision.models._api", "load_state_dict_from_url", _backbone)


def _own(arch: str) -> tuple[str, str, Callable[..., Any]]:
    return f"pyiqa.archs.{arch}", "load_pretrained_network", _load_pretrained


_REPLACED: dict[str, tuple[tuple[str, str, Callable[..., Any]], ...]] = {
    "musiq_arch": (_own("musiq_arch"),),
    "topiq_arch": (_own("topiq_arch"), ("timm", "create_model", _no_pretraining)),
    "brisque_arch": (
        ("pyiqa.archs.brisque_arch", "load_file_from_url", _in_hub),
        ("torch", "load", _two_tensors),
    ),
    "maniqa_arch": (_own("maniqa_arch"), ("timm", "create_model", _no_pretraining)),
    "lpips_arch": (_own("lpips_arch"), _TORCHVISION),
    "dists_arch": (_own("dists_arch"), _TORCHVISION),
    "clipiqa_arch": (("pyiqa.archs.clipiqa_arch", "load", _clip),),
    "afine_arch": (("pyiqa.archs.afine_arch", "load", _afine_clip),),
    "inception": (_own("inception"),),
}
