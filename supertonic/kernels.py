"""The few operations that a prepared model is made of, in the layout that runs fastest: they take
packed rows (`rows.py`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic import loops
from supertonic.loops import Parts, Scalars, quick_on_cpu
from supertonic.rows import Rows

PART = 128  # frames in one product on a CPU, at the published size; see `Form.parts`
FEWEST = 48  # in 16 bit on a CPU, fewer frames than that are filled up with zeros
SIZES = 32  # of one product on a CPU; see `Form.parts`

multiply = quick_on_cpu(loops.multiply)
mix = quick_on_cpu(loops.mix)
filter_channels = quick_on_cpu(loops.filter_channels)
rotate = quick_on_cpu(loops.rotate)
find_by_row = quick_on_cpu(loops.find_by_row)
look_around = quick_on_cpu(loops.look_around)
look_around_by_row = quick_on_cpu(loops.look_around_by_row)


@dataclass(frozen=True)
class Form:
    """What the matrix products are computed with. Everything around them is `stream`."""

    device: torch.device
    dtype: torch.dtype
    is_long: bool = False  # for the vocoder, which has six times as many frames as the others
    most_frames: int = PART  # in one product on a CPU; see `parts`

    @property
    def stream(self) -> torch.dtype:
        """Of norms, softmax, convolutions and what blocks add to: never less than float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def packs_weights(self) -> bool:
        """oneDNN's own weight layout; on AMD processors twice as fast as PyTorch's default."""
        is_short = self.dtype != torch.float64
        return self.device.type == "cpu" and is_short and bool(torch._C._has_mkldnn)

    @property
    def is_exact_by_row(self) -> bool:
        """Whether a row must come out of a batch bit by bit as it does alone.

        In 16 bit, because there the smallest difference is soon rounded to a large one.
        """
        return self.device.type == "cpu" and self.dtype in (torch.bfloat16, torch.float16)

    def goes_by_row(self, rows: Rows) -> bool:
        """Whether attention takes one row after the other: together they are padded, and with
        padding the sums have another order. A single row goes the same way, which is short.
        """
        return self.is_exact_by_row or (self.device.type == "cpu" and len(rows) == 1)

    def constant(self, value: Tensor) -> Tensor:
        """A copy on the device in the stream's dtype, which keeps no weights file mapped."""
        return value.detach().to(self.device, self.stream, copy=True).contiguous()

    def parts(self, n: int) -> Parts:
        """For N frames in oneDNN's products: frames per part, and the fewest and the step that each
        part is filled up to.

        There are few parts, nearly equal, so that what stands between two products of a block
        fits the cache. And the bfloat16 product sums in another order when it gets very many or
        very few frames; for 37 to 128 frames (up to 256 in the vocoder's wide products) a frame
        comes out the same, bit by bit. In float32 a small model takes more at once: they fit its
        cache, and every product begins with some work of its own.

        In steps, because oneDNN builds a product anew for each size, which takes half a
        millisecond, and keeps some 300 KB for it: a worker that had met all sizes would hold
        gigabytes.
        """
        most, step = self.most_frames, self.most_frames // SIZES
        fewest = FEWEST if self.is_exact_by_row else 1
        if n <= most:
            return max(n, fewest), fewest, step
        each = -(-n // -(-n // most))
        return -(-max(each, fewest) // step) * step, fewest, step


class Dense:
    """y = activation(x·W + b), or x·W + b + `plus`: (N, inputs) to (N, outputs).

    Takes the stream's or the form's dtype. Gives the stream's, but the form's with `activation`,
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
        # As oneDNN wants to be told.
        self.scalars: Scalars = [slope] if activation == "leaky_relu" else []
        self.algorithm = "none" if activation == "gelu" else ""  # not the tanh approximation

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if self.form.packs_weights:
            parts = self.form.parts(len(x))
            how = (self.activation, self.scalars, self.algorithm)
            return multiply(x, plus, self.weight, self.bias, *how, parts)
        y = self._activate(F.linear(x.to(self.form.dtype), self.weight, self.bias))
        if self.activation != "none":
            return y
        if plus is None:
            return y.to(self.form.stream)
        # A sum of mixed dtypes is one pass on a GPU, and on a CPU slower than two.
        return plus + (y if y.is_cuda else y.to(self.form.stream))

    def _activate(self, y: Tensor) -> Tensor:
        match self.activation:
            case "gelu":
                return F.gelu(y)
            case "relu":
                return F.relu(y)
            case "leaky_relu":
                return F.leaky_relu(y, self.slope)
        return y


class Norm:
    """LayerNorm over channels, in the stream's dtype."""

    def __init__(self, form: Form, norm: nn.LayerNorm) -> None:
        self.weight, self.bias = form.constant(norm.weight), form.constant(norm.bias)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Past:
    """What the causal convolutions have seen of one row so far, when it is decoded in slices."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}  # by layer: its last frames

    def before(self, layer: object, x: Tensor, reach: int) -> Tensor:
        """(N, C) to (reach + N, C): the frames before x, or its first one repeated."""
        seen = self._seen.get(id(layer))
        x = torch.cat([x[:1].expand(reach, -1) if seen is None else seen, x])
        self._seen[id(layer)] = x[len(x) - reach :]
        return x


class Depthwise:
    """One filter per channel along time: (N, C) to (N, C).

    One multiply-add per tap; over many frames on a CPU, oneDNN's kernel, which takes packed rows
    as an image one pixel high with its channels innermost.
    """

    def __init__(self, form: Form, conv: nn.Conv1d, left: int, right: int) -> None:
        assert conv.bias is not None
        self.bias = form.constant(conv.bias)
        self.dilation = conv.dilation[0]
        self.left, self.right = left, right
        self.taps = form.constant(conv.weight[:, 0].T)  # (k, C)
        self.is_packed = form.packs_weights and form.is_long
        if self.is_packed:
            image = form.constant(conv.weight)[:, :, None]  # (C, 1, 1, k)
            shape = [1, len(image), 1, 100 + left + right]
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                image, [0, 0], [1, 1], [1, self.dilation], len(image), shape
            )

    def __call__(self, x: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        x, keep = _with_edges(self, x, rows, self.left, self.right, past)
        reach = self.left + self.right
        if self.is_packed:
            y = self._packed(x)
        else:
            y = filter_channels(x, self.taps, self.bias, self.dilation, reach)
        return y if keep is None else y.index_select(0, keep)

    def _packed(self, x: Tensor) -> Tensor:
        # Few sizes here too: at most an eighth more, of a small part of the work.
        n, step = len(x), 1 << max(0, len(x).bit_length() - 4)
        x = F.pad(x, (0, 0, 0, -n % step))
        convolve = torch.ops.mkldnn._convolution_pointwise
        y = convolve(
            x.T[None, :, None],
            self.packed,
            self.bias,
            *([0, 0], [1, 1], [1, self.dilation]),
            x.shape[1],
            *("none", [], ""),
        )
        return y[0, :, 0].T[: n - self.left - self.right]


class Window:
    """A short ordinary convolution that looks back: the frames it sees side by side, then Dense."""

    def __init__(self, kernel: int, dense: Dense) -> None:
        self.kernel, self.dense = kernel, dense

    def __call__(self, x: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        x, keep = _with_edges(self, x, rows, self.kernel - 1, 0, past)
        n, channels = len(x) - self.kernel + 1, x.shape[1]
        seen = x.as_strided((n, self.kernel * channels), (channels, 1))
        return self.dense((seen if keep is None else seen.index_select(0, keep)).contiguous())


def _with_edges(
    layer: object, x: Tensor, rows: Rows, left: int, right: int, past: Past | None
) -> tuple[Tensor, Tensor | None]:
    """x with what a convolution sees beside it, and which frames of its output to keep."""
    if past is not None:
        return past.before(layer, x, left), None
    take, keep = rows.around(left, right)
    return x.index_select(0, take), keep


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
        self.form = form
        self.dwconv = Depthwise(form, dwconv, left, right)
        self.norm = Norm(form, block.norm.norm)
        self.up = Dense(form, *scaled(block.pwconv1), activation="gelu")
        self.down = Dense(form, *scaled(block.pwconv2, block.gamma.flatten()))

    def __call__(self, x: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        y = self.dwconv(x, rows, past)
        if not self.form.packs_weights:
            return self.down(self.up(self.norm(y)), plus=x)
        up, down, norm = self.up, self.down, self.norm
        weights = (norm.weight, norm.bias, norm.eps, up.weight, up.bias, down.weight, down.bias)
        return mix(x, y, *weights, self.form.parts(len(x)))


def blocks(convnext: Any, form: Form) -> list[ConvNeXtBlock]:
    """A stack of them, prepared."""
    return [
        ConvNeXtBlock(form, block.dwconv, block, is_causal=False) for block in convnext.convnext
    ]


def attend(
    form: Form,
    q: Tensor,  # (N, heads · d), with the scale already in it
    k: Tensor,  # (B or 1, heads, longest, d)
    v: Tensor,  # (B, heads, longest, d)
    rows: Rows,
    keys: Rows | None = None,  # how many keys each row has; None: as many as there are
) -> Tensor:  # (N, heads · d)
    """What each frame finds among the keys of its own row."""
    if form.goes_by_row(rows):
        n_keys = keys.lengths if keys else [k.shape[2]] * len(rows)
        return find_by_row(q, k, v, rows.lengths, n_keys)
    split = rows.split_heads(q, k.shape[1])
    if form.device.type == "cuda":
        split, k, v = split.to(form.dtype), k.to(form.dtype), v.to(form.dtype)
    k, mask = k.expand(len(v), -1, -1, -1), keys.keys if keys else None
    return rows.merge_heads(F.scaled_dot_product_attention(split, k, v, attn_mask=mask, scale=1.0))


def scaled(layer: nn.Linear | nn.Conv1d, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs) and bias of a pointwise layer, outputs times `factor`."""
    assert layer.bias is not None
    weight, bias = layer.weight.flatten(1), layer.bias
    if isinstance(factor, Tensor):
        return weight * factor[:, None], bias * factor
    return (weight, bias) if factor == 1 else (weight * factor, bias * factor)


class RelativeSelfAttention:
    """As in `layers`, but the nine diagonals are read and written in place, not gathered."""

    def __init__(self, form: Form, attention: Any) -> None:
        self.form, self.heads = form, attention.heads
        head_dim = attention.emb_rel_k.shape[2]
        q = scaled(attention.conv_q, 1 / math.sqrt(head_dim))
        k, v = scaled(attention.conv_k), scaled(attention.conv_v)
        self.qkv = Dense(form, torch.cat([q[0], k[0], v[0]]), torch.cat([q[1], k[1], v[1]]))
        self.out = Dense(form, *scaled(attention.conv_o))
        self.near_k = form.constant(attention.emb_rel_k[0].T)  # (d, 9)
        self.near_v = form.constant(attention.emb_rel_v[0])

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """x plus what attention found."""
        return self.out(self._find(self.qkv(x), rows), plus=x)

    def _find(self, qkv: Tensor, rows: Rows) -> Tensor:
        if self.form.goes_by_row(rows):
            near = (self.near_k, self.near_v)
            return look_around_by_row(qkv, *near, rows.lengths, self.heads)
        q, k, v = (rows.split_heads(part, self.heads) for part in qkv.chunk(3, dim=1))
        return rows.merge_heads(look_around(q, k, v, self.near_k, self.near_v, rows.is_real))
