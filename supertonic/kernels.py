"""The few operations that a prepared model is made of, in the layout that runs fastest.

A batch is *packed*: the rows stand one behind the other in one (frames, channels) tensor, with
nothing between them. Nothing is ever computed for padding, and whatever does not look sideways in
time needs not know that there are rows at all. `Rows` knows, for the two things that do look
sideways: depthwise convolutions and attention.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG_PASS = 256  # frames; a convolution's passes over more than that miss the cache


@dataclass(frozen=True)
class Form:
    """What the matrix products are computed with. Everything around them is float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def packs_weights(self) -> bool:
        """oneDNN's own weight layout; on AMD processors twice as fast as PyTorch's default."""
        return self.device.type == "cpu" and bool(torch._C._has_mkldnn)

    def constant(self, value: Tensor) -> Tensor:
        """A float32 copy on the device, which does not keep a weights file mapped."""
        return value.detach().to(self.device, torch.float32, copy=True).contiguous()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for the work that it still has before it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Dense:
    """y = activation(x·W + b), or x·W + b + `plus`: (N, inputs) to (N, outputs).

    Takes float32 or the form's dtype. Gives float32, but the form's dtype with `activation`,
    where another product follows and would round to it anyway.
    """

    def __init__(
        self,
        form: Form,
        weight: Tensor,  # (outputs, inputs)
        bias: Tensor | None = None,
        activation: str = "none",  # gelu | relu | leaky_relu
        slope: float = 0.0,
    ) -> None:
        self.form = form
        self.weight = weight.detach().to(form.device, form.dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(form.device, form.dtype, copy=True)
        if form.packs_weights:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        elif self.weight.data_ptr() == weight.data_ptr():
            self.weight = self.weight.clone()
        self.activation = activation
        self.slope = slope

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        x = x.to(self.form.dtype)
        y = self._packed(x, plus) if self.form.packs_weights else self._plain(x)
        if self.activation != "none":
            return y
        if plus is not None and not self._fuses(plus):
            return plus + y
        return y.float()

    def _fuses(self, plus: Tensor) -> bool:
        # In 16 bit the sum stays outside: it is the float32 stream that blocks add to.
        return self.form.packs_weights and plus.dtype == self.form.dtype

    def _packed(self, x: Tensor, plus: Tensor | None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        if plus is not None and self._fuses(plus):
            return product.binary(x, plus, self.weight, self.bias, "add")
        scalars = [self.slope] if self.activation == "leaky_relu" else []
        algorithm = "none" if self.activation == "gelu" else ""  # not the tanh approximation
        return product(x, self.weight, self.bias, self.activation, scalars, algorithm)

    def _plain(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        match self.activation:
            case "gelu":
                return F.gelu(y)
            case "relu":
                return F.relu(y)
            case "leaky_relu":
                return F.leaky_relu(y, self.slope)
        return y


class Norm:
    """LayerNorm over channels, in float32."""

    def __init__(self, form: Form, norm: nn.LayerNorm) -> None:
        self.weight, self.bias = form.constant(norm.weight), form.constant(norm.bias)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Rows:
    """Where each row of a packed (N, channels) tensor begins and ends."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device
        self.n = sum(self.lengths)
        self._around: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def times(self, factor: int) -> "Rows":
        return Rows([length * factor for length in self.lengths], self.device)

    def around(self, left: int, right: int) -> tuple[Tensor, Tensor | None]:
        """How to give every row `left` and `right` frames more, repeating its first and last.

        Index of the frames to take; and, of what a convolution then makes of all of them, the
        frames to keep (None = all): between two rows it also looks at a bit of both.
        """
        if (left, right) not in self._around:
            take, keep, start = [], [], 0
            for row, length in enumerate(self.lengths):
                take.append(torch.arange(-left, length + right).clamp(0, length - 1) + start)
                keep.append(torch.arange(length) + start + row * (left + right))
                start += length
            kept = send(torch.cat(keep), self.device) if len(self) > 1 else None
            self._around[left, right] = send(torch.cat(take), self.device), kept
        return self._around[left, right]

    @cached_property
    def row_of(self) -> Tensor:
        """(N,) which row each frame belongs to."""
        lengths = torch.tensor(self.lengths)
        return send(torch.arange(len(self)).repeat_interleave(lengths), self.device)

    def spread(self, per_row: Tensor) -> Tensor:
        """(B, C) to (N, C); one row stays (1, C), which is the same to a sum or product."""
        return per_row if len(self) == 1 else per_row.index_select(0, self.row_of)

    @cached_property
    def turn(self) -> Tensor:
        """(N, 1) float32: how far through its own row each frame is, in [0, 1)."""
        each = [torch.arange(n, dtype=torch.float32) / n for n in self.lengths]
        return send(torch.cat(each)[:, None], self.device)

    @cached_property
    def is_real(self) -> Tensor:  # (B, longest)
        lengths = torch.tensor(self.lengths)
        return send(torch.arange(max(self.lengths)) < lengths[:, None], self.device)

    @property
    def is_even(self) -> bool:
        return len(set(self.lengths)) == 1

    @cached_property
    def keys(self) -> Tensor | None:
        """(B, 1, 1, longest) bool: the keys that attention may look at; None when all."""
        return None if self.is_even else self.is_real[:, None, None]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Index of packed frames for padded places, and of padded places for packed frames."""
        longest, take, places, start = max(self.lengths), [], [], 0
        for row, length in enumerate(self.lengths):
            take.append(torch.arange(longest).clamp(max=length - 1) + start)
            places.append(torch.arange(length) + row * longest)
            start += length
        return send(torch.cat(take), self.device), send(torch.cat(places), self.device)

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        """(N, heads · d) to (B, heads, longest, d). Short rows repeat their last frame."""
        if not self.is_even:
            x = x.index_select(0, self._places[0])
        return x.view(len(self), -1, heads, x.shape[1] // heads).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, heads, longest, d) back to (N, heads · d)."""
        merged = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return merged if self.is_even else merged.index_select(0, self._places[1])


class Depthwise:
    """One filter per channel along time, as one multiply-add per tap: (N, C) to (N, C).

    In this layout that is a few passes over memory that is in the cache. oneDNN's depthwise
    convolution is 30 % slower at 100 frames and 30 % faster at 600: 0.1 ms of 17 in a block.
    """

    def __init__(self, form: Form, conv: nn.Conv1d, left: int, right: int) -> None:
        self.taps = form.constant(conv.weight[:, 0].T)  # (k, C)
        assert conv.bias is not None
        self.bias = form.constant(conv.bias)
        self.dilation = conv.dilation[0]
        self.left, self.right = left, right

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        take, keep = rows.around(self.left, self.right)
        padded = x.index_select(0, take)
        y = x.new_empty(len(padded) - self.left - self.right, x.shape[1])
        length = LONG_PASS if x.device.type == "cpu" else len(y)
        for start in range(0, len(y), length):
            part = y[start : start + length]
            for tap, weight in enumerate(self.taps):
                shifted = padded[start + tap * self.dilation :][: len(part)]
                torch.addcmul(part if tap else self.bias, shifted, weight, out=part)
        return y if keep is None else y.index_select(0, keep)


class Window:
    """A short ordinary convolution that looks back: the frames it sees side by side, then Dense."""

    def __init__(self, kernel: int, dense: Dense) -> None:
        self.kernel, self.dense = kernel, dense

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        take, keep = rows.around(self.kernel - 1, 0)
        x = x.index_select(0, take)
        n, channels = len(x) - self.kernel + 1, x.shape[1]
        seen = x.as_strided((n, self.kernel * channels), (channels, 1))
        return self.dense((seen if keep is None else seen.index_select(0, keep)).contiguous())


class ConvNeXtBlock:
    def __init__(
        self,
        form: Form,
        dwconv: nn.Conv1d,
        block: Any,  # norm, pwconv1, pwconv2 and gamma, of either kind of block
        *,
        is_causal: bool,
    ) -> None:
        reach = (dwconv.kernel_size[0] - 1) * dwconv.dilation[0]
        left, right = (reach, 0) if is_causal else (reach // 2, reach // 2)
        self.dwconv = Depthwise(form, dwconv, left, right)
        self.norm = Norm(form, block.norm.norm)
        self.up = Dense(form, *scaled(block.pwconv1), activation="gelu")
        self.down = Dense(form, *scaled(block.pwconv2, block.gamma.flatten()))

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        return self.down(self.up(self.norm(self.dwconv(x, rows))), plus=x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary embedding of (N, heads · d) by the angles of each frame, (N, 1, d / 2)."""
    a, b = x.view(len(x), heads, -1).chunk(2, dim=2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=2).view_as(x)


def attend(form: Form, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """Attention whose scale is already in q. On a GPU the products are in the form's dtype."""
    if form.device.type == "cuda":
        q, k, v = q.to(form.dtype), k.to(form.dtype), v.to(form.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys, scale=1.0)


def scaled(layer: nn.Linear | nn.Conv1d, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs) and bias of a pointwise layer, outputs times `factor`."""
    assert layer.bias is not None
    weight, bias = layer.weight.flatten(1), layer.bias
    if isinstance(factor, Tensor):
        return weight * factor[:, None], bias * factor
    return (weight, bias) if factor == 1 else (weight * factor, bias * factor)


class RelativeSelfAttention:
    """As in `layers`, but the nine diagonals are read and written in place, not gathered.

    Keys and values get `window` zeros at either end. In a row of scores of that width the near
    keys of query i then begin at column i: the diagonals are a view with strides.
    """

    def __init__(self, form: Form, attention: Any, window: int) -> None:
        self.form, self.window, self.heads = form, window, attention.heads
        head_dim = attention.emb_rel_k.shape[2]
        q = scaled(attention.conv_q, 1 / math.sqrt(head_dim))
        k, v = scaled(attention.conv_k), scaled(attention.conv_v)
        self.qkv = Dense(form, torch.cat([q[0], k[0], v[0]]), torch.cat([q[1], k[1], v[1]]))
        self.out = Dense(form, *scaled(attention.conv_o))
        self.near_k = form.constant(attention.emb_rel_k[0].T)  # (d, 9)
        self.near_v = form.constant(attention.emb_rel_v[0])

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """x plus what attention found."""
        split = [rows.split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=1)]
        q = split[0]
        k, v = (F.pad(part, (0, 0, self.window, self.window)) for part in split[1:])
        scores = q @ k.mT  # (B, heads, T, T + 2 window)
        self._near(scores).add_(q @ self.near_k)
        scores.masked_fill_(self._out_of_reach(rows), -torch.inf)
        weights = scores.softmax(dim=3)
        found = weights @ v + self._near(weights) @ self.near_v
        return self.out(rows.merge_heads(found), plus=x)

    def _near(self, scores: Tensor) -> Tensor:
        batch, heads, length, width = scores.shape
        strides = (heads * length * width, length * width, width + 1, 1)
        return scores.as_strided((batch, heads, length, 2 * self.window + 1), strides)

    def _out_of_reach(self, rows: Rows) -> Tensor:
        real = rows.is_real[:, None, None]
        return ~F.pad(real, (self.window, self.window))
