"""CLIP-IQA (Wang et al. 2023) with CLIP's RN50: is the picture nearer to "Good image" or to "bad
image"?

    s_k = scale <image, prompt_k>           cosine similarities, two prompts in a pair
    score = mean over five pairs of softmax(s_good, s_bad)[good]

The image is not resized, so its attention pooling goes without the positions of CLIP's own. The
five pairs are pyiqa's; the authors' first version has the first. OpenAI's weights (MIT), from a
file of plain weights, or OpenAI's archive if its SHA-256 is the published one.

Shapes: BCHW, RGB in [0, 1]; N prompts of L tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gdpo.metrics.networks import clip_state, hub
from gdpo.metrics.table import METRICS

START, END, LENGTH, VOCABULARY = 49406, 49407, 77, 49408
# The tokens of CLIP's vocabulary for, pair by pair: Good image, bad image; Sharp image, blurry
# image; sharp edges, blurry edges; High resolution image, low resolution image; Noise-free image,
# noisy image.
PROMPTS = (
    *((886, 2867), (2103, 2867)),
    *((8157, 2867), (21977, 2867)),
    *((8157, 20938), (21977, 20938)),
    *((1400, 9977, 2867), (1042, 9977, 2867)),
    *((9307, 268, 1139, 2867), (33495, 2867)),
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Bottleneck(nn.Module):
    """A residual block whose stride is an average pooling."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or width_in != 4 * width:
            self.downsample = nn.Sequential()
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(width_in, 4 * width, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """BCHW -> B(4 width)(H/stride)(W/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.pool(functional.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """One query, the mean, over all positions."""

    def __init__(self, width: int, heads: int, width_out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(50, width))  # unused: see the top
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, width_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """BCHW -> B width_out."""
        x = x.flatten(2).mT
        mean = x.mean(1, keepdim=True)
        x = torch.cat([mean, x], 1)
        q, k, v = (
            p(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for p, y in ((self.q_proj, mean), (self.k_proj, x), (self.v_proj, x))
        )
        pooled = functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.c_proj(pooled.transpose(1, 2).flatten(1))
        return out


class Visual(nn.Module):
    """CLIP's ResNet-50: a stem of three convolutions, four stages, attention pooling."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        width_in = width
        for number, blocks in enumerate((3, 4, 6, 3)):
            inner, stage = width << number, nn.Sequential()
            for index in range(blocks):
                stride = 2 if number and not index else 1
                stage.append(Bottleneck(width_in, inner, stride))
                width_in = 4 * inner
            setattr(self, f"layer{number + 1}", stage)
        self.attnpool = AttentionPool(width_in, width_in // 64, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """BCHW, normalised -> B1024."""
        for number in (1, 2, 3):
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x = functional.relu(norm(convolution(x)))
        x = functional.avg_pool2d(x, 2)
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
        out: torch.Tensor = self.attnpool(x)
        return out


class TextBlock(nn.Module):
    """Attention and feed-forward, normalised before, with CLIP's quick GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """NLD -> NLD."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        out: torch.Tensor = x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))
        return out


class ClipIqa(nn.Module):
    """CLIP-IQA; the parameters have the names of OpenAI's file."""

    def __init__(self, width: int = 512, heads: int = 8, layers: int = 12) -> None:
        super().__init__()
        self.visual = Visual()
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(TextBlock(width, heads) for _ in range(layers))}
        )
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, 1024))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.prompts: torch.Tensor | None = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The score of each image, B1, in [0, 1]."""
        if self.prompts is None:
            self.prompts = functional.normalize(self._texts(), dim=1)
        mean, std = (torch.tensor(v).to(image)[None, :, None, None] for v in (MEAN, STD))
        features = functional.normalize(self.visual((image - mean) / std), dim=1)
        logits = self.logit_scale.exp() * features @ self.prompts.T
        return logits.unflatten(1, (-1, 2)).softmax(2)[..., 0].mean(1, keepdim=True)

    def _texts(self) -> torch.Tensor:
        """The features of the prompts, N1024."""
        weight = self.positional_embedding
        # No token sees a later one, so what would follow the end does not matter.
        length = max(map(len, PROMPTS)) + 2
        ids = [[START, *prompt, END] + [0] * (length - 2 - len(prompt)) for prompt in PROMPTS]
        x = self.token_embedding(torch.tensor(ids, device=weight.device)) + weight[:length]
        mask = torch.full((length, length), float("-inf")).triu(1).to(weight)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks:
            x = block(x, mask)
        ends = torch.tensor([len(prompt) + 1 for prompt in PROMPTS], device=weight.device)
        out: torch.Tensor = self.ln_final(x)[torch.arange(len(ids)), ends] @ self.text_projection
        return out


def build(device: torch.device | str) -> ClipIqa:
    """CLIP-IQA with OpenAI's weights from `hub()`, frozen, on the device.

    Errors: ValueError naming the file that is missing, broken or of another network.
    """
    (path,) = (hub() / name for name in METRICS["clipiqa"].weights)
    network, state = ClipIqa(), clip_state(path)
    known = {name: state[name] for name in network.state_dict() if name in state}
    try:
        network.load_state_dict(known)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of CLIP's RN50") from error
    return network.to(device).eval().requires_grad_(False)
