"""RAM and DAPE, very small, in the released layout; and what they compute, written out from the
definition.

`checkpoint` and `dape` make what torch.save wrote: modules of the released names (buffers, tied
weights and the parts that are never run for tags included). `logits` computes with those names and
no library's layers, LoRA beside the weights.
Swin: Liu et al. 2021. The decoder: Query2Label as in RAM, two layers of cross-attention and
feed-forward. All in float64.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

SIDE, WINDOW, TAGS, WIDTH, HIDDEN, WORDS = 384, 12, 6, 8, 16, 11
# The last level is one window, which does not shift.
EMBED, DEPTHS, HEADS = (
    4,
    (2, 1, 1, 2),
    (1, 2, 2, 4),
)
NAMES = ["grass", "sky", "polar bear", "tree", "sea", "boat"]
State = dict[str, torch.Tensor]


class Named(nn.Module):
    """A module whose children are given by name."""

    def __init__(self, /, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class WindowAttention(nn.Module):
    def __init__(self, d: int, heads: int, window: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer(
            "relative_position_index", torch.zeros(window**2, window**2, dtype=torch.long)
        )


def block(d: int, heads: int, window: int, shifted: bool) -> nn.Module:
    made = Named(
        norm1=nn.LayerNorm(d),
        attn=WindowAttention(d, heads, window),
        norm2=nn.LayerNorm(d),
        mlp=Named(fc1=nn.Linear(d, 4 * d), fc2=nn.Linear(4 * d, d)),
    )
    made.register_buffer("attn_mask", torch.zeros(4, window**2, window**2) if shifted else None)
    return made


def swin(window: int) -> nn.Module:
    levels = []
    for level, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        d = EMBED * 2**level
        blocks = nn.ModuleList(block(d, heads, window, bool(i % 2)) for i in range(depth))
        last = level + 1 == len(DEPTHS)
        down = (
            {}
            if last
            else {
                "downsample": Named(
                    reduction=nn.Linear(4 * d, 2 * d, bias=False), norm=nn.LayerNorm(4 * d)
                )
            }
        )
        levels.append(Named(blocks=blocks, **down))
    embed = Named(proj=nn.Conv2d(3, EMBED, 4, 4), norm=nn.LayerNorm(EMBED))
    return Named(
        patch_embed=embed,
        layers=nn.ModuleList(levels),
        norm=nn.LayerNorm(EMBED * 2 ** (len(DEPTHS) - 1)),
    )


def attention(source: int) -> nn.Module:
    own = Named(
        query=nn.Linear(HIDDEN, HIDDEN),
        key=nn.Linear(source, HIDDEN),
        value=nn.Linear(source, HIDDEN),
    )
    return Named(
        **{
            "self": own,
            "output": Named(dense=nn.Linear(HIDDEN, HIDDEN), LayerNorm=nn.LayerNorm(HIDDEN)),
        }
    )


def bert(layers: int, source: int, *, own: bool) -> nn.Module:
    made = []
    for _ in range(layers):
        parts = {"attention": attention(HIDDEN)} if own else {}
        parts |= {
            "crossattention": attention(source),
            "intermediate": Named(dense=nn.Linear(HIDDEN, 4 * HIDDEN)),
        }
        parts["output"] = Named(dense=nn.Linear(4 * HIDDEN, HIDDEN), LayerNorm=nn.LayerNorm(HIDDEN))
        made.append(Named(**parts))
    words = {"embeddings": Named(word_embeddings=nn.Embedding(WORDS, HIDDEN))} if own else {}
    return Named(encoder=Named(layer=nn.ModuleList(made)), **words)


def checkpoint(seed: int = 0, window: int = WINDOW) -> dict[str, Any]:
    """The dict in ram_swin_large_14m.pth: fp32 weights large enough that every part shows in the
    logits.
    """
    torch.manual_seed(seed)
    head, tag_encoder = bert(2, WIDTH, own=False), bert(3, WIDTH, own=True)
    for mine, theirs in zip(head.encoder.layer, tag_encoder.encoder.layer, strict=False):
        for name in ("crossattention", "intermediate", "output"):
            setattr(theirs, name, getattr(mine, name))
    model = Named(
        visual_encoder=swin(window),
        tag_encoder=tag_encoder,
        text_decoder=Named(bert=bert(2, HIDDEN, own=True)),
        tagging_head=head,
        wordvec_proj=nn.Linear(WIDTH, HIDDEN),
        fc=nn.Linear(HIDDEN, 1),
        image_proj=nn.Linear(EMBED * 2 ** (len(DEPTHS) - 1), WIDTH),
    )
    model.label_embed = nn.Parameter(torch.empty(TAGS, WIDTH))
    for name, parameter in model.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        if name.endswith("bias_table"):
            scale = 1.0
        parameter.data = torch.randn(parameter.shape) * scale + float(
            "norm" in name.lower() and name.endswith("weight")
        )
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 1e-4, "params": [0]}],
    }
    return {
        "model": model.state_dict(),
        "optimizer": optimizer,
        "config": {"vit": "swin_l"},
        "epoch": 4,
    }


def dape(seed: int = 1, *, zero: bool = False) -> State:
    """The dict in DAPE.pth: LoRA of loralib, on the idle parts with B = 0 as tagging leaves
    them.
    """
    torch.manual_seed(seed)
    found: State = {}

    def add(name: str, out: int, into: int, groups: int, *, trained: bool) -> None:
        found[f"{name}.lora_A"] = torch.randn(8 * groups, into)
        found[f"{name}.lora_B"] = torch.randn(out * groups, 8) * float(trained and not zero)

    for level, depth in enumerate(DEPTHS):
        d = EMBED * 2**level
        for i in range(depth):
            add(f"visual_encoder.layers.{level}.blocks.{i}.attn.qkv", d, d, 2, trained=True)
    for layer in range(2):
        for which, into in (("query", HIDDEN), ("key", WIDTH)):
            add(
                f"tagging_head.encoder.layer.{layer}.crossattention.self.{which}",
                HIDDEN,
                into,
                1,
                trained=True,
            )
    for part, layers, source in (("tag_encoder", 3, WIDTH), ("text_decoder.bert", 2, HIDDEN)):
        for layer in range(layers):
            for where, into in (("attention", HIDDEN), ("crossattention", source)):
                name = f"{part}.encoder.layer.{layer}.{where}.self"
                add(f"{name}.query", HIDDEN, HIDDEN, 1, trained=False)
                add(f"{name}.key", HIDDEN, into, 1, trained=False)
    return found


def write(folder: Path, model: dict[str, Any] | None = None, lora: State | None = None) -> Path:
    """All four released files in `folder`; returns the checkpoint's path."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint() if model is None else model, folder / "ram_swin_large_14m.pth")
    torch.save(dape() if lora is None else lora, folder / "DAPE.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "ram_tag_list_threshold.txt").write_text("0.5\n0.65\n0.5\n0.3\n0.8\n1.0\n")
    return folder / "ram_swin_large_14m.pth"


class Definition:
    """RAM's formulas over a state of released names, with or without LoRA."""

    def __init__(self, state: State, lora: State | None = None) -> None:
        self.state = {
            name: value.double() for name, value in state.items() if value.is_floating_point()
        }
        self.lora = {name: value.double() for name, value in (lora or {}).items()}

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """W x + b, and 1/8 B A x where there is LoRA."""
        y = x @ self.state[f"{name}.weight"].T
        if f"{name}.bias" in self.state:
            y = y + self.state[f"{name}.bias"]
        if f"{name}.lora_A" not in self.lora:
            return y
        a, b = self.lora[f"{name}.lora_A"], self.lora[f"{name}.lora_B"]
        if not name.endswith("qkv"):
            return y + x @ a.T @ b.T / 8
        d = x.shape[-1]
        q, v = x @ a[:8].T @ b[:d].T / 8, x @ a[8:].T @ b[d:].T / 8
        return y + torch.cat([q, torch.zeros_like(q), v], dim=-1)

    def norm(self, name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def window(
        self, name: str, x_HWC: torch.Tensor, region: torch.Tensor, heads: int
    ) -> torch.Tensor:
        """Attention inside one window; tokens of another region of the unshifted image do not see
        each other.
        """
        side, d = x_HWC.shape[0], x_HWC.shape[2]
        q, k, v = self.linear(f"{name}.qkv", x_HWC.reshape(-1, d)).chunk(3, dim=-1)
        at = torch.arange(side)
        y, x = at.repeat_interleave(side), at.repeat(side)
        index = (y[:, None] - y[None] + side - 1) * (2 * side - 1) + (
            x[:, None] - x[None] + side - 1
        )
        mask = torch.where(region.reshape(-1, 1) == region.reshape(1, -1), 0.0, -100.0)
        mixed = []
        for head, part in enumerate(torch.arange(d).chunk(heads)):
            bias = self.state[f"{name}.relative_position_bias_table"][index, head]
            score = q[:, part] @ k[:, part].T / len(part) ** 0.5 + bias + mask
            mixed.append(score.softmax(-1) @ v[:, part])
        return self.linear(f"{name}.proj", torch.cat(mixed, dim=-1)).reshape(x_HWC.shape)

    def block(self, name: str, x_HWC: torch.Tensor, heads: int, shift: int) -> torch.Tensor:
        side = x_HWC.shape[0]
        shift = shift if side > WINDOW else 0
        # Where a shifted window holds both borders of the image: rows and columns from the other
        # side are another region.
        edge = (
            (torch.arange(side) >= side - shift).long()
            if shift
            else torch.zeros(side, dtype=torch.long)
        )
        region = edge[:, None] * 2 + edge[None]
        x = self.norm(f"{name}.norm1", x_HWC).roll((-shift, -shift), (0, 1))
        out = torch.empty_like(x)
        for top in range(0, side, WINDOW):
            for left in range(0, side, WINDOW):
                here = (slice(top, top + WINDOW), slice(left, left + WINDOW))
                out[here] = self.window(f"{name}.attn", x[here], region[here], heads)
        x = x_HWC + out.roll((shift, shift), (0, 1))
        return x + self.linear(
            f"{name}.mlp.fc2",
            self.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))),
        )

    def tokens(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """Swin's tokens (L, D), their mean first."""
        name = "visual_encoder"
        patches = (
            image_CHW.double().unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(2)
        )
        weight = self.state[f"{name}.patch_embed.proj.weight"].flatten(1)
        x = self.norm(
            f"{name}.patch_embed.norm",
            patches @ weight.T + self.state[f"{name}.patch_embed.proj.bias"],
        )
        for level, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            for i in range(depth):
                x = self.block(
                    f"{name}.layers.{level}.blocks.{i}", x, heads, WINDOW // 2 if i % 2 else 0
                )
            if level + 1 < len(DEPTHS):
                x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], dim=-1)
                down = f"{name}.layers.{level}.downsample"
                x = self.linear(f"{down}.reduction", self.norm(f"{down}.norm", x))
        x = self.norm(f"{name}.norm", x).flatten(0, 1)
        return torch.cat([x.mean(0, keepdim=True), x])

    def logits(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """One logit per tag, of a normalised image (3, 384, 384)."""
        tokens = self.linear("image_proj", self.tokens(image_CHW))
        x = self.linear("wordvec_proj", self.state["label_embed"]).clamp(min=0)
        for layer in range(2):
            name = f"tagging_head.encoder.layer.{layer}"
            q = self.linear(f"{name}.crossattention.self.query", x)
            k, v = (
                self.linear(f"{name}.crossattention.self.{which}", tokens)
                for which in ("key", "value")
            )
            mixed = [
                (q[:, part] @ k[:, part].T / len(part) ** 0.5).softmax(-1) @ v[:, part]
                for part in torch.arange(HIDDEN).chunk(4)
            ]
            y = self.linear(f"{name}.crossattention.output.dense", torch.cat(mixed, dim=-1))
            x = self.norm(f"{name}.crossattention.output.LayerNorm", x + y, 1e-12)
            y = self.linear(
                f"{name}.output.dense", self.gelu(self.linear(f"{name}.intermediate.dense", x))
            )
            x = self.norm(f"{name}.output.LayerNorm", x + y, 1e-12)
        return self.linear("fc", x)[:, 0]
