"""Small networks of many kinds, and their data: seeded, so that each call makes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import (
    affine_grid,
    cross_entropy,
    dropout,
    grid_sample,
    scaled_dot_product_attention,
)
from torch.utils.checkpoint import checkpoint

ROWS, INPUTS, CLASSES, WORDS, LENGTH = 24, 5, 3, 7, 5
IGNORED = -100


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(below: int, *shape: int, seed: int = 2) -> torch.Tensor:
    """Integers from 0."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def cut(*tensors: Any, at: int) -> list[Any]:
    """Two batches of what has the same rows; of one tensor the batches are tensors."""
    pairs = [tuple(tensor[:at] for tensor in tensors), tuple(tensor[at:] for tensor in tensors)]
    return pairs if len(tensors) > 1 else [one for (one,) in pairs]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A module, or the tensors of a collection, with real numbers of another type."""
    if isinstance(value, nn.Module):
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: cast(one, dtype) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cast(one, dtype) for one in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def seeded(make: Any, *arguments: Any, **options: Any) -> nn.Module:
    """A network whose weights are always the same, in evaluation mode."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return make(*arguments, **options).eval()


def perceptron(*layers: nn.Module, inputs: int = INPUTS, hidden: int = 6, outputs: int = CLASSES):
    """A network with one hidden layer; tanh, unless other layers are given."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), *(layers or (nn.Tanh(),)), nn.Linear(hidden, outputs)
    )


class Attention(nn.Module):
    """A block of a language model: embedding, norm, attention, an output that is tied to the input.

    Args:
        masked: Whether a mask says what is attended to, instead of ``is_causal``.
    """

    def __init__(self, masked: bool = False, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(0.1 * torch.randn(2 * LENGTH, width))
        self.norm = nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.masked = masked

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.places[:length]
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        mask = torch.ones(length, length, dtype=torch.bool).tril() if self.masked else None
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not self.masked)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        return (x @ self.embedding.weight.T).transpose(1, 2)  # (B, V, T)


def padded_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets; of the first eight rows fewer targets count."""
    tokens, targets = integers(WORDS, 12, LENGTH, seed=3), integers(WORDS, 12, LENGTH, seed=4)
    targets[:8, 2:] = IGNORED
    return tokens, targets


@dataclass
class Output:
    """What such models return."""

    loss: torch.Tensor
    logits: torch.Tensor


class CausalLM(nn.Module):
    """A language model that is called as those of Hugging Face are, and computes its loss."""

    def __init__(self, as_dict: bool = False) -> None:
        super().__init__()
        self.body = Attention()
        self.as_dict = as_dict

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.body(input_ids).transpose(1, 2)
        logits = logits * attention_mask[..., None]
        shifted = logits[:, :-1].transpose(1, 2)
        loss = cross_entropy(shifted, labels[:, 1:], ignore_index=IGNORED)
        return {"loss": loss, "logits": logits} if self.as_dict else Output(loss, logits)


def language_batch(rows: int, length: int, padding: int, seed: int) -> dict[str, torch.Tensor]:
    """Arguments of :class:`CausalLM`; the last places of all rows but the first are padding."""
    tokens = integers(WORDS, rows, length, seed=seed)
    attended = torch.ones(rows, length, dtype=torch.long)
    attended[1:, length - padding :] = 0
    labels = tokens.masked_fill(attended == 0, IGNORED)
    return {"input_ids": tokens, "attention_mask": attended, "labels": labels}


def shifted_count(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """How many labels count after the shift."""
    return (batch["labels"][:, 1:] != IGNORED).sum()


class Recurrent(nn.Module):
    """A recurrent layer, and a linear one at its last state."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(2, 3, batch_first=True, **options)
        self.last = nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class Checkpointed(nn.Module):
    """A network whose middle is computed again on the way back."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(INPUTS, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        middle = nn.Sequential(self.middle, nn.Tanh())
        return self.last(checkpoint(middle, self.first(x), use_reentrant=self.reentrant))


class Transformer(nn.Module):
    """A layer of torch's transformer, with a mean over the places and a linear layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=dropout, batch_first=True)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.layer(x).mean(dim=1))


class SelfAttention(nn.Module):
    """torch's module of attention, with weights or without."""

    def __init__(self, weights: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.last = nn.Linear(4, CLASSES)
        self.weights = weights

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=self.weights)[0].mean(dim=1))


def convolutional(*layers: nn.Module, channels: int = 2) -> nn.Module:
    """Convolution, what is given, and a linear layer; for images ``(n, 1, 6, 6)``."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), *layers, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * channels, CLASSES),
    )  # fmt: skip


class OfWords(nn.Module):
    """The mean of the embeddings of words, of which word 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 3, padding_idx=0)
        self.last = nn.Linear(3, CLASSES)

    def forward(self, words):
        return self.last(torch.tanh(self.embedding(words).mean(dim=1)))


class TwoHeads(nn.Module):
    """Classes and a number from the same body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES)
        self.number = nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.classes(h), self.number(h)


class OfDictionary(nn.Module):
    """A model whose inputs have names."""

    def __init__(self) -> None:
        super().__init__()
        self.last = perceptron()

    def forward(self, inputs):
        return self.last(inputs["one"] + inputs["other"] ** 2)


class WithUnusedHead(nn.Module):
    """A layer that the forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = perceptron(), nn.Linear(INPUTS, 2)

    def forward(self, x):
        return self.body(x)


def reparametrised(by: Any) -> nn.Module:
    """A network whose first weight is made from others."""
    return nn.Sequential(by(nn.Linear(INPUTS, 4)), nn.Tanh(), nn.Linear(4, CLASSES))


class Twice(nn.Module):
    """A layer that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class GraphConvolution(nn.Module):
    """Rows of a batch that are nodes on a ring, with a sparse matrix of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        nodes = torch.arange(len(x))
        edges = torch.stack([nodes, (nodes + 1) % len(x)])
        ring = torch.sparse_coo_tensor(
            edges, torch.ones(len(x), dtype=x.dtype), check_invariants=True
        )
        return torch.sparse.mm(ring, self.last(torch.tanh(self.first(x))))


class Spectral(nn.Module):
    """A filter of frequencies, by complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES)
        self.filter = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        waves = torch.fft.rfft(torch.tanh(self.first(x))) * torch.view_as_complex(self.filter)
        return self.last(torch.fft.irfft(waves, n=4))


class Packed(nn.Module):
    """A recurrent layer over sequences of which the first entry says how long they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.GRU(2, 2, batch_first=True), nn.Linear(2, CLASSES)

    def forward(self, x):
        lengths = (x[:, 0, 0] > 0).long() * 2 + 3
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        return self.last(self.layer(packed)[1][-1])


class Tied(nn.Module):
    """Words that predict a word, by the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(WORDS, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, WORDS)
        self.out.weight = self.embedding.weight

    def forward(self, words):
        return self.out(torch.tanh(self.mix(self.embedding(words).mean(dim=1))))


class RunningMean(nn.Module):
    """Centres its inputs by an average of all that it has seen, which each call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()
        self.register_buffer("average", 0.3 * torch.ones(INPUTS))

    def forward(self, x):
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * x.mean(dim=0))
        return self.body(torch.sin(x - self.average))


class Warped(nn.Module):
    """Images that are sampled where the network says."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[0.913, 0.117, 0.031], [0.023, 1.071, 0.127]]))
        self.last = nn.Linear(36, CLASSES)

    def forward(self, x):
        grid = affine_grid(self.theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return self.last(grid_sample(x, grid, align_corners=False).flatten(1))


class ComplexScale(nn.Module):
    """Numbers times a complex number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1 + 2j))

    def forward(self, x):
        return self.factor * x


class FunctionalDropout(nn.Module):
    """Dropout that no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return self.body(dropout(x, 0.5, training=True))


class Cube(torch.autograd.Function):
    """``x^3``, with a derivative that can be differentiated, or cannot."""

    @staticmethod
    def forward(ctx, x, detached):
        ctx.save_for_backward(x)
        ctx.detached = detached
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * (x.detach() if ctx.detached else x) ** 2, None


class OnceDifferentiable(torch.autograd.Function):
    """``x^3``, which says itself that it cannot be differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class Applying(nn.Module):
    """A layer that applies a function."""

    def __init__(self, function: Any, *more: Any) -> None:
        super().__init__()
        self.function, self.more = function, more

    def forward(self, x):
        return self.function(x, *self.more)
