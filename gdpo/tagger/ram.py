"""The tagging path of RAM (Recognize Anything, Swin-L 14 M): a 384 x 384 image -> a logit per tag.

    tokens  = image_proj([mean; Swin(image)])              145 x 512      transformers' Swin
    query   = relu(wordvec_proj(label_embed))              4585 x 768     one per tag
    twice:    query = norm(query + attention(query, tokens))              torch's attention
              query = norm(query + FFN(query))
    logit   = fc(query)

The path has 212.1 M parameters, 212.7 M with DAPE's LoRA. RAM's other 257 M (tag encoder, text
decoder) generate sentences; tagging never runs them.

`Layout` has the released names and shapes of these tensors; our files keep the names.
Legend: B batch, N queries, L tokens, D widths.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import SwinConfig, SwinModel
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # the stages show their own, and loading is quick

Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]
SIDE, PATCH, WINDOW = 384, 4, 12  # Swin-L as released; not to be read off tensor shapes
BIAS_ROWS = (2 * WINDOW - 1) ** 2
HEADS, NORM_EPS = 4, 1e-12  # of the tagging head (its BERT configuration)
DAPE_RANK, DAPE_SCALING = 8, 0.125  # loralib with r = 8 and its default alpha = 1
HEAD = "tagging_head.encoder.layer"
SWIN = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "layers": "encoder.layers",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
}
ATTENTION = "crossattention.self"
FEED_FORWARD = {
    "crossattention.output.dense": "attention.out_proj",
    "crossattention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


@dataclass(frozen=True)
class Layout:
    """The sizes of a tagger.

    embed: Swin's first width. depths, heads: blocks and heads per level. tags: number of tags.
    width, hidden: widths of tokens and queries. layers: layers of the head.
    """

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    tags: int
    width: int
    hidden: int
    layers: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> "Layout":
        """Infer the layout from released names and shapes.

        Errors: ValueError naming the first required tensor that is missing.
        """

        def size(name: str, axis: int) -> int:
            if name not in shapes or len(shapes[name]) <= axis:
                raise ValueError(f"tensor {name!r} is missing or has too few dimensions")
            return shapes[name][axis]

        # Read from the tensors and not from a table of models, so that the tests' small RAM goes
        # through the same code as the real one. Only what no shape tells (window, heads of the
        # tagging head) is a constant.
        levels = _count(shapes, r"visual_encoder\.layers\.(\d+)\.")
        bias = "visual_encoder.layers.{}.blocks.0.attn.relative_position_bias_table"
        return cls(
            embed=size("visual_encoder.patch_embed.proj.weight", 0),
            depths=tuple(
                _count(shapes, rf"visual_encoder\.layers\.{level}\.blocks\.(\d+)\.")
                for level in range(levels)
            ),
            heads=tuple(size(bias.format(level), 1) for level in range(levels)),
            tags=size("label_embed", 0),
            width=size("label_embed", 1),
            hidden=size("wordvec_proj.weight", 0),
            layers=_count(shapes, re.escape(HEAD) + r"\.(\d+)\."),
        )

    def shapes(self) -> dict[str, Shape]:
        """Shapes of all tensors of the tagging path, by released name."""
        e, out = self.embed, self.embed * 2 ** (len(self.depths) - 1)
        shapes: dict[str, Shape] = {"visual_encoder.patch_embed.proj.weight": (e, 3, PATCH, PATCH)}
        shapes["visual_encoder.patch_embed.proj.bias"] = (e,)
        shapes |= _norm("visual_encoder.patch_embed.norm", e)
        for level, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            d, name = e * 2**level, f"visual_encoder.layers.{level}"
            for block in range(depth):
                shapes |= _block(f"{name}.blocks.{block}", d, heads)
            # Swin merges 2 x 2 patches after each level but the last: four times the channels in,
            # twice out.
            if level + 1 < len(self.depths):
                shapes[f"{name}.downsample.reduction.weight"] = (2 * d, 4 * d)
                shapes |= _norm(f"{name}.downsample.norm", 4 * d)
        shapes |= _norm("visual_encoder.norm", out) | _linear("image_proj", self.width, out)
        shapes |= {"label_embed": (self.tags, self.width)} | _linear(
            "wordvec_proj", self.hidden, self.width
        )
        for layer in range(self.layers):
            shapes |= _head_layer(f"{HEAD}.{layer}", self.hidden, self.width)
        return shapes | _linear("fc", 1, self.hidden)

    def lora_shapes(self) -> dict[str, Shape]:
        """Shapes of all tensors of DAPE's LoRA on the tagging path, by released name.

        It adapts q and v of Swin's joint q, k, v, and the head's query and key.
        """
        shapes: dict[str, Shape] = {}
        for name, (out, into) in (
            (n.removesuffix(".weight"), s) for n, s in self.shapes().items() if len(s) == 2
        ):
            if name.endswith(".attn.qkv"):
                shapes |= {
                    # loralib's MergedLinear: two A of rank 8 under each other, two B one after the
                    # other, for q and v; k has none.
                    f"{name}.lora_A": (2 * DAPE_RANK, into),
                    f"{name}.lora_B": (2 * out // 3, DAPE_RANK),
                }
            if name.endswith((f"{ATTENTION}.query", f"{ATTENTION}.key")):
                shapes |= {f"{name}.lora_A": (DAPE_RANK, into), f"{name}.lora_B": (out, DAPE_RANK)}
        return shapes


RAM = Layout(192, (2, 2, 18, 2), (6, 12, 24, 48), tags=4585, width=512, hidden=768, layers=2)


def _count(names: Collection[str], pattern: str) -> int:
    """One more than the greatest index that `pattern` captures in the names; 0 without a match."""
    return max(
        (int(match[1]) + 1 for name in names if (match := re.match(pattern, name))), default=0
    )


def _linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, d: int, heads: int) -> dict[str, Shape]:
    shapes = _norm(f"{name}.norm1", d) | _norm(f"{name}.norm2", d)
    shapes |= _linear(f"{name}.attn.qkv", 3 * d, d) | _linear(f"{name}.attn.proj", d, d)
    shapes[f"{name}.attn.relative_position_bias_table"] = (BIAS_ROWS, heads)
    return shapes | _linear(f"{name}.mlp.fc1", 4 * d, d) | _linear(f"{name}.mlp.fc2", d, 4 * d)


def _head_layer(name: str, hidden: int, width: int) -> dict[str, Shape]:
    attention = f"{name}.{ATTENTION}"
    shapes = _linear(f"{attention}.query", hidden, hidden)
    shapes |= _linear(f"{attention}.key", hidden, width) | _linear(
        f"{attention}.value", hidden, width
    )
    shapes |= _linear(f"{name}.crossattention.output.dense", hidden, hidden)
    shapes |= _linear(f"{name}.intermediate.dense", 4 * hidden, hidden) | _linear(
        f"{name}.output.dense", hidden, 4 * hidden
    )
    return (
        shapes
        | _norm(f"{name}.crossattention.output.LayerNorm", hidden)
        | _norm(f"{name}.output.LayerNorm", hidden)
    )


class Layer(nn.Module):
    """One layer of the tagging head: attention to the tokens, then feed-forward, both post-norm."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        assert width != hidden, "torch would fold the three projections into one tensor"
        self.attention = nn.MultiheadAttention(
            hidden, HEADS, kdim=width, vdim=width, batch_first=True
        )
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.norm1, self.norm2 = (
            nn.LayerNorm(hidden, eps=NORM_EPS),
            nn.LayerNorm(hidden, eps=NORM_EPS),
        )

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """x (B, N, hidden) attends to tokens (B, L, width)."""
        # The head's layers have no self-attention: RAM deletes it, so each tag is judged without
        # regard to the others.
        x = self.norm1(x + self.attention(x, tokens, tokens, need_weights=False)[0])
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Head(nn.Module):
    """The tagging head after Swin: projection of tokens, queries of tags, layers, logits."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.image_proj = nn.Linear(layout.embed * 2 ** (len(layout.depths) - 1), layout.width)
        self.label_embed = nn.Parameter(torch.empty(layout.tags, layout.width))
        self.wordvec_proj = nn.Linear(layout.width, layout.hidden)
        self.layers = nn.ModuleList(
            Layer(layout.hidden, layout.width) for _ in range(layout.layers)
        )
        self.fc = nn.Linear(layout.hidden, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Swin's tokens (B, L, D) -> logits (B, N). Their mean is added as the first token."""
        # The release computes the mean after Swin's last norm, and projects both.
        tokens = self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))
        x = self.wordvec_proj(self.label_embed).relu().expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        return self.fc(x)[..., 0]


class Network(nn.Module):
    """The whole tagging path: normalised image (B, 3, 384, 384) -> logits (B, tags)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        config = SwinConfig(
            image_size=SIDE,
            patch_size=PATCH,
            embed_dim=layout.embed,
            depths=list(layout.depths),
            num_heads=list(layout.heads),
            window_size=WINDOW,
        )
        self.swin = SwinModel(config, add_pooling_layer=False)
        self.head = Head(layout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of every tag."""
        return self.head(self.swin(image).last_hidden_state)


def build(state: Tensors) -> Network:
    """The network with the weights `state`, in fp32, without gradients.

    state: tensors by released name, as in `Layout.shapes`.
    """
    layout = Layout.of({name: tuple(tensor.shape) for name, tensor in state.items()})
    # Without memory: both halves are replaced by loaded tensors below, and 212 M random numbers
    # take seconds.
    with torch.device("meta"):
        network = Network(layout)
    swin, head = _swin_names(state), _head_names(state)
    # Through the library's own loader, because transformers renames layers from version to version
    # and maps the names there.
    network.swin, info = SwinModel.from_pretrained(
        None,
        config=network.swin.config,
        state_dict=swin,
        dtype=torch.float32,
        add_pooling_layer=False,
        output_loading_info=True,
    )
    odd = sorted(info["missing_keys"] | info["unexpected_keys"])
    if odd:
        raise ValueError(
            f"this version of transformers has no Swin layer as known here ({odd[0]}); see "
            "requirements.lock"
        )
    network.head.load_state_dict(
        {name: tensor.float() for name, tensor in head.items()}, assign=True
    )
    return network.eval().requires_grad_(False)


def _swin_names(state: Tensors) -> Tensors:
    """Rename Swin's tensors to transformers' names, which has three layers for q, k and v."""
    renamed: Tensors = {}
    for name, tensor in state.items():
        if not name.startswith("visual_encoder."):
            continue
        name = name.removeprefix("visual_encoder.")
        # Anchored: the blocks' norm1 and norm2 have names of their own in the table.
        name = re.sub("^norm", "layernorm", name)
        for theirs, ours in SWIN.items():
            name = name.replace(theirs, ours, 1)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            renamed[name] = tensor
    return renamed


def _head_names(state: Tensors) -> Tensors:
    """Rename the head's tensors to our names; torch has one bias for query, key and value."""
    renamed: Tensors = {}
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("visual_encoder."):
            continue
        name = name.replace(HEAD, "layers")
        if f".{ATTENTION}." in name:
            layer, _, rest = name.partition(f".{ATTENTION}.")
            which, kind = rest.split(".")
            if kind == "weight":
                renamed[f"{layer}.attention.{which[0]}_proj_weight"] = tensor
            else:
                biases.setdefault(layer, {})[which] = tensor
            continue
        for theirs, ours in FEED_FORWARD.items():
            name = name.replace(theirs, ours, 1)
        renamed[name] = tensor
    for layer, parts in biases.items():
        renamed[f"{layer}.attention.in_proj_bias"] = torch.cat(
            [parts["query"], parts["key"], parts["value"]]
        )
    return renamed
