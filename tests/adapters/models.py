"""A small model for each kind of layer that an adapter can be on, the same weights every time."""

from __future__ import annotations

import torch
from torch import nn

WIDTH, VOCABULARY, CLASSES, EXPERTS, INNER = 8, 12, 3, 3, 6
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])


class Body(nn.Module):
    """One layer, called `layer`, and the way from (batch, tokens, width) through it and back."""

    def __init__(self, layer, norm=True):
        super().__init__()
        self.layer = layer
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()

    def through(self, x):
        return self.layer(x)

    def forward(self, x):
        return self.norm(x + self.through(x))


class Convolved(Body):
    """A convolution over the tokens, folded into as many dimensions as it has."""

    def __init__(self, layer):
        super().__init__(layer)
        self.dims = len(layer.kernel_size)

    def through(self, x):
        batch, tokens, width = x.shape
        dims = self.dims
        folded = x.mT.reshape(batch, width, *[tokens if d == 0 else 1 for d in range(dims)])
        return self.layer(folded).reshape(batch, width, tokens).mT


class Attended(Body):
    def through(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Fused(Body):
    """A projection to q, k and v at once, added up, so that each third counts."""

    def through(self, x):
        q, k, v = self.layer(x).chunk(3, dim=-1)
        return torch.tanh(q) * k + v


class Interleaved(Body):
    """ChatGLM-6B's query_key_value: each head's q, k and v lie side by side."""

    def through(self, x):
        heads = self.layer(x).unflatten(-1, (2, -1))
        q, k, v = heads.chunk(3, dim=-1)
        return (torch.tanh(q) * k + v).flatten(-2)


class MultiQuery(Body):
    """ChatGLM2's query_key_value: all heads' q, then one narrow k and one narrow v for all of them."""

    def through(self, x):
        q, k, v = self.layer(x).split([WIDTH, 2, 2], dim=-1)
        return (torch.tanh(q.unflatten(-1, (-1, 2))) * k.unsqueeze(-2) + v.unsqueeze(-2)).flatten(-2)


class Experts(nn.Module):
    """Fused experts as transformers has them: (experts, in, out) where `is_transposed`, else (experts, out, in).

    The first holds gate and up side by side.
    """

    def __init__(self, inner=INNER, is_transposed=False, flag=True):
        super().__init__()
        up, down = (WIDTH, 2 * inner), (inner, WIDTH)
        if not is_transposed:
            up, down = up[::-1], down[::-1]
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, *up) / 3)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *down) / 3)
        self.transposed = is_transposed
        if flag:
            self.is_transposed = is_transposed

    def forward(self, x):
        up = self.up_proj if self.transposed else self.up_proj.mT
        down = self.down_proj if self.transposed else self.down_proj.mT
        gate, inner = torch.einsum("bti,eio->beto", x, up).chunk(2, dim=-1)
        inner = torch.tanh(gate) * inner
        return torch.einsum("beto,eoi->bti", inner, down)


class Scaled(nn.Embedding):
    """An embedding that scales its rows, as Gemma's does."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("embed_scale", torch.tensor(2.5), persistent=False)

    def forward(self, tokens):
        return super().forward(tokens) * self.embed_scale.to(self.weight.dtype)


class Whole(nn.Module):
    """An embedding, a body and a head; PEFT asks a model for its embeddings and its config."""

    def __init__(self, body, embed=nn.Embedding, tied=False):
        super().__init__()
        self.embed = embed(VOCABULARY, WIDTH)
        self.body = body()
        self.score = nn.Linear(WIDTH, CLASSES)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, tokens):
        x = self.body(self.embed(tokens))
        return torch.cat([self.score(x), self.head(x)], dim=-1)


class Transposed(nn.Module):
    """The transposed linear layer of GPT-2, under a name of its own: structure tells it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) / 3)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def _shim_conv1d():
    from shardload.transformers_shim.pytorch_utils import Conv1D

    layer = Conv1D(WIDTH, WIDTH)
    layer.bias.data.normal_()
    return layer


def _transformers_conv1d(nf=WIDTH):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(nf, WIDTH)
    layer.bias.data.normal_()
    return layer


def _conv(cls, **options):
    return lambda: Convolved(cls(WIDTH, WIDTH, 3, padding=1, **options))


LAYERS = {
    "Linear": lambda: Body(nn.Linear(WIDTH, WIDTH)),
    "Linear, no bias": lambda: Body(nn.Linear(WIDTH, WIDTH, bias=False)),
    "Embedding": lambda: Body(nn.Tanh()),
    "Embedding with embed_scale": lambda: Body(nn.Tanh()),
    "Conv1d": _conv(nn.Conv1d),
    "Conv2d": _conv(nn.Conv2d),
    "Conv2d, groups": _conv(nn.Conv2d, groups=2),
    "Conv3d": _conv(nn.Conv3d),
    "Conv1D of transformers": lambda: Body(_transformers_conv1d()),
    "Conv1D of the stand-in": lambda: Body(_shim_conv1d()),
    "MultiheadAttention": lambda: Attended(nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "experts (E, in, out)": lambda: Body(Experts(is_transposed=True)),
    "experts (E, out, in)": lambda: Body(Experts()),
    "fused q, k, v": lambda: Fused(nn.Linear(WIDTH, 3 * WIDTH)),
    "query_key_value of ChatGLM-6B": lambda: Interleaved(nn.Linear(WIDTH, 3 * WIDTH)),
    "query_key_value of ChatGLM2": lambda: MultiQuery(nn.Linear(WIDTH, WIDTH + 4)),
}


def make(layer, dtype=torch.float32, **options):
    """Return the model with this kind of layer in evaluation mode, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        embed = Scaled if layer == "Embedding with embed_scale" else nn.Embedding
        return Whole(LAYERS[layer], embed, **options).to(dtype).eval()
