"""Sequences of small operations inside a prepared model, each as one call.

An operation takes tens of microseconds, of which Python has a fifth in bfloat16; and while one
thread is in Python, those on other cores wait for its lock. So on a CPU, TorchScript runs these
functions, without Python and without the lock. The operations are the same, and so is every bit of
what comes out. A GPU, where a graph is recorded once, gets them as they are.

Tensors are packed, (N, channels), as in `rows.py`. Weights of products are in oneDNN's own
layout, and the products come in few sizes (`Form.parts`).
"""

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Tensor])
# What TorchScript takes for the type of an optional number.
Scalars = list[complex | float | int | None]
# Frames per part; the fewest, and the step, that a part is filled up to.
Parts = tuple[int, int, int]


def quick_on_cpu(function: Function) -> Function:
    """The function, which on a CPU runs without Python. Its first argument must be a tensor.

    As it is where TorchScript does not take it: a PyTorch that has it no more, or no oneDNN.
    """
    try:
        with warnings.catch_warnings():
            # Deprecated in favour of a compiler that takes minutes to begin.
            warnings.simplefilter("ignore", DeprecationWarning)
            quick = torch.jit.script(function)
    except Exception as error:
        # Whatever the reason is, it speaks all the same, only slower.
        level = logging.WARNING if torch._C._has_mkldnn else logging.INFO
        logger.log(level, "%s runs in Python: %s", function.__name__, error)
        return function

    @wraps(function)
    def run(x: Tensor, *others: Any) -> Tensor:
        return function(x, *others) if x.is_cuda else quick(x, *others)

    return cast(Function, run)


def filter_channels(
    x: Tensor,  # (reach + N, C)
    taps: Tensor,  # (k, C)
    bias: Tensor,  # (C,)
    dilation: int,
    reach: int,
) -> Tensor:  # (N, C)
    """A depthwise convolution, one multiply-add per tap."""
    n = x.size(0) - reach
    y = torch.addcmul(bias, x[:n], taps[0])
    for tap in range(1, taps.size(0)):
        y.addcmul_(x[tap * dilation : tap * dilation + n], taps[tap])
    return y


def _fill(x: Tensor, parts: Parts) -> Tensor:
    """(N, C) with zeros behind it, up to a size that products have."""
    _, fewest, step = parts
    n = max(x.size(0), fewest)
    missing = (n + step - 1) // step * step - x.size(0)
    return F.pad(x, [0, 0, 0, missing]) if missing > 0 else x


def _product(
    x: Tensor,
    plus: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    scalars: Scalars,
    algorithm: str,
) -> Tensor:
    """x·W + b + `plus` in float32, or activation(x·W + b) in the product's own dtype."""
    x = x.to(weight.dtype)
    if plus is not None and plus.dtype == weight.dtype:
        return torch.ops.mkldnn._linear_pointwise(x, plus, weight, bias, "add")
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, algorithm)
    if activation != "none":
        return y
    y = y.to(torch.float32)
    # In 16 bit the sum stays outside: it is the float32 stream that blocks add to.
    return y if plus is None else plus + y


def multiply(
    x: Tensor,  # (N, inputs)
    plus: Tensor | None,  # (N, outputs)
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    scalars: Scalars,
    algorithm: str,
    parts: Parts,
) -> Tensor:  # (N, outputs)
    """What `Dense` is, by oneDNN and part by part."""
    each = parts[0]
    found: list[Tensor] = []
    for start in range(0, x.size(0), each):
        part = x[start : start + each]
        added = None if plus is None else _fill(plus[start : start + each], parts)
        y = _product(_fill(part, parts), added, weight, bias, activation, scalars, algorithm)
        found.append(y[: part.size(0)])
    return found[0] if len(found) == 1 else torch.cat(found)


def mix(
    x: Tensor,  # (N, C)
    y: Tensor,  # (N, C)
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    parts: Parts,
) -> Tensor:  # (N, C)
    """What a ConvNeXt block does behind its convolution, whose result is y: x plus the mixture."""
    mixture = torch.empty_like(x)
    none: Scalars = []
    each = parts[0]
    for start in range(0, x.size(0), each):
        end = min(start + each, x.size(0))
        z = F.layer_norm(_fill(y[start:end], parts), [y.size(1)], norm_weight, norm_bias, eps)
        z = _product(z, None, up_weight, up_bias, "gelu", none, "none")
        plus = _fill(x[start:end], parts)
        z = _product(z, plus, down_weight, down_bias, "none", none, "")
        mixture[start:end] = z[: end - start]
    return mixture


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary embedding of (N, heads · d) by the angles of each frame, (N, 1, d / 2)."""
    a, b = x.view(x.size(0), heads, -1).chunk(2, dim=2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=2).view_as(x)


def find_by_row(
    q: Tensor,  # (N, heads · d), with the scale already in it
    k: Tensor,  # (B or 1, heads, longest, d)
    v: Tensor,  # (B, heads, longest, d)
    lengths: list[int],  # of each row, in frames
    keys: list[int],  # of each row
) -> Tensor:  # (N, heads · d)
    """What each frame finds among the keys of its own row, one row after the other."""
    heads, d = v.size(1), v.size(3)
    found: list[Tensor] = []
    start = 0
    for row, n in enumerate(lengths):
        own = q[start : start + n].view(1, n, heads, d).transpose(1, 2)
        row_k = row if k.size(0) > 1 else 0
        seen = F.scaled_dot_product_attention(
            own,
            k[row_k : row_k + 1, :, : keys[row]],
            v[row : row + 1, :, : keys[row]],
            scale=1.0,
        )
        found.append(seen.transpose(1, 2).reshape(n, heads * d))
        start += n
    return found[0] if len(found) == 1 else torch.cat(found)


def _near(scores: Tensor, window: int) -> Tensor:
    """The diagonals of (B, heads, T, T + 2 window), as (B, heads, T, 2 window + 1)."""
    batch, heads, length, width = scores.shape
    return scores.as_strided(
        [batch, heads, length, 2 * window + 1],
        [heads * length * width, length * width, width + 1, 1],
    )


def look_around(
    q: Tensor,  # (B, heads, T, d), with the scale already in it
    k: Tensor,
    v: Tensor,
    near_k: Tensor,  # (d, 2 window + 1)
    near_v: Tensor,  # (2 window + 1, d)
    is_real: Tensor,  # (B, T) bool
) -> Tensor:  # (B, heads, T, d)
    """Self-attention that knows how far each near neighbour is.

    Keys and values get `window` zeros at either end. In a row of scores of that width the near
    keys of query i then begin at column i: the diagonals are a view with strides.
    """
    window = near_v.size(0) // 2
    k, v = F.pad(k, [0, 0, window, window]), F.pad(v, [0, 0, window, window])
    scores = q @ k.mT
    _near(scores, window).add_(q @ near_k)
    # The zeros at either end too.
    out_of_reach = ~F.pad(is_real[:, None, None], [window, window])
    weights = scores.masked_fill_(out_of_reach, -float("inf")).softmax(dim=3)
    return weights @ v + _near(weights, window) @ near_v


def look_around_by_row(
    qkv: Tensor,  # (N, 3 · heads · d)
    near_k: Tensor,
    near_v: Tensor,
    lengths: list[int],
    heads: int,
) -> Tensor:  # (N, heads · d)
    """The same of packed rows, one after the other."""
    found: list[Tensor] = []
    start, width = 0, qkv.size(1) // 3
    for n in lengths:
        own = qkv[start : start + n].view(1, n, 3, heads, width // heads)
        q, k, v = own.permute(2, 0, 3, 1, 4).unbind(0)
        is_real = torch.ones([1, n], dtype=torch.bool, device=qkv.device)
        seen = look_around(q, k, v, near_k, near_v, is_real)
        found.append(seen.transpose(1, 2).reshape(n, width))
        start += n
    return found[0] if len(found) == 1 else torch.cat(found)
