"""The product's networks, computed in the layout that trains fastest.

The weights are those of the modules in `supertonic/`; only the order of work differs: channels
last, the depthwise convolutions as shifted products, no masks where all rows are equally long.
`tests/test_training.py` holds these functions to the modules.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supertonic.layers import KERNEL, WINDOW, merge_heads, split_heads


class Depthwise(torch.autograd.Function):
    """Depthwise convolution over time of (B, L, C), edges repeated; a third faster than autograd's.

    taps (C, k); `before` and `after` frames of padding, which with the dilation keep the length.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, dilation: int, before: int, after: int
    ) -> Tensor:
        first, last = x[:, :1].expand(-1, before, -1), x[:, -1:].expand(-1, after, -1)
        wide, length = torch.cat([first, x, last], dim=1), x.shape[1]
        y = torch.addcmul(bias, wide[:, :length], taps[:, 0])
        for k in range(1, taps.shape[1]):
            y.addcmul_(wide[:, k * dilation : k * dilation + length], taps[:, k])
        ctx.save_for_backward(wide, taps)
        ctx.shape = (dilation, before, after)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wide, taps = ctx.saved_tensors
        (dilation, before, after), length = ctx.shape, grad.shape[1]
        of_wide, of_taps = torch.zeros_like(wide), torch.empty_like(taps)
        for k in range(taps.shape[1]):
            seen = slice(k * dilation, k * dilation + length)
            of_wide[:, seen].addcmul_(grad, taps[:, k])
            of_taps[:, k] = (grad * wide[:, seen]).sum((0, 1))
        of_x = of_wide[:, before : before + length]
        of_x[:, 0] += of_wide[:, :before].sum(1)
        if after:
            of_x[:, -1] += of_wide[:, before + length :].sum(1)
        return of_x, of_taps, grad.sum((0, 1)), None, None, None


def pointwise(block: Any, x: Tensor, y: Tensor) -> Tensor:
    """What follows the depthwise convolution in either kind of ConvNeXt block."""
    y = F.layer_norm(y, y.shape[-1:], block.norm.norm.weight, block.norm.norm.bias, 1e-6)
    y = F.gelu(F.linear(y, block.pwconv1.weight[:, :, 0], block.pwconv1.bias))
    y = F.linear(y, block.pwconv2.weight[:, :, 0], block.pwconv2.bias)
    return x + block.gamma[0, :, 0] * y


def conv_block(block: Any, x: Tensor, dilation: int) -> Tensor:
    """A symmetric ConvNeXt block on full rows, (B, L, C)."""
    conv, reach = block.dwconv, dilation * (KERNEL - 1) // 2
    y = Depthwise.apply(x, conv.weight[:, 0], conv.bias, dilation, reach, reach)
    return pointwise(block, x, y)


def fill(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) with each row's last real frame repeated behind its end."""
    last = x[torch.arange(len(x), device=x.device), lengths - 1]
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(real[:, :, None], x, last[:, None])


def self_attention(attention: Any, x: Tensor, keys: Tensor) -> Tensor:
    """Attention with relative positions; keys is (B, 1, 1, T), True where real."""

    def point(conv: Any) -> Tensor:
        return split_heads(F.linear(x, conv.weight[:, :, 0], conv.bias), attention.heads)

    q, k, v = point(attention.conv_q), point(attention.conv_k), point(attention.conv_v)
    q = q / math.sqrt(q.shape[-1])
    row = torch.arange(x.shape[1], device=x.device)[:, None]
    distance = row.T - row + WINDOW
    near = (distance >= 0) & (distance <= 2 * WINDOW)
    index = distance.clamp(0, 2 * WINDOW)
    # (T, T, d) tables would be large; a gather of nine scores per query is not.
    by_distance = (q @ attention.emb_rel_k[0].to(q.dtype).T).gather(
        3, index.expand(*q.shape[:2], -1, -1)
    )
    scores = (q @ k.mT + by_distance * near).float()
    weights = scores.masked_fill(~keys, -torch.inf).softmax(3)
    diagonals = row + torch.arange(2 * WINDOW + 1, device=x.device)
    near_weights = F.pad(weights, (WINDOW, WINDOW)).gather(
        3, diagonals.expand(*q.shape[:2], -1, -1)
    )
    found = weights.to(v.dtype) @ v + near_weights.to(v.dtype) @ attention.emb_rel_v[0].to(v.dtype)
    return F.linear(merge_heads(found), attention.conv_o.weight[:, :, 0], attention.conv_o.bias)


def norm(layer: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], layer.norm.weight, layer.norm.bias, 1e-6)


def attention_encoder(encoder: Any, x: Tensor, keys: Tensor) -> Tensor:
    layers = zip(
        encoder.attn_layers, encoder.norm_layers_1, encoder.ffn_layers, encoder.norm_layers_2,
        strict=True,
    )  # fmt: skip
    for attention, norm_1, ffn, norm_2 in layers:
        x = norm(norm_1, x + self_attention(attention, x, keys))
        hidden = F.relu(F.linear(x, ffn.conv_1.weight[:, :, 0], ffn.conv_1.bias))
        x = norm(norm_2, x + F.linear(hidden, ffn.conv_2.weight[:, :, 0], ffn.conv_2.bias))
    return x


def characters(encoder: Any, text_ids: Tensor, lengths: Tensor, dilations: Any) -> Tensor:
    """`CharacterEncoder` as (B, T) to (B, T, C); what lies behind a row's end is not zeroed."""
    keys = (torch.arange(text_ids.shape[1], device=text_ids.device) < lengths[:, None])[
        :, None, None
    ]
    x = encoder.text_embedder.char_embedder(text_ids)
    for block, dilation in zip(encoder.convnext.convnext, dilations, strict=True):
        x = conv_block(block, fill(x, lengths), dilation)
    return attention_encoder(encoder.attn_encoder, x, keys) + x


def prompted(encoder: Any, x: Tensor, style_ttl: Tensor) -> Tensor:
    """`SpeechPromptedTextEncoder`, (B, T, C)."""

    def ask(attention: Any, x: Tensor) -> Tensor:
        q = split_heads(attention.W_query(x), attention.heads)
        k = attention.tanh().expand(len(x), -1, -1, -1).to(q.dtype)
        v = split_heads(attention.W_value(style_ttl), attention.heads)
        weights = (q @ k.mT * attention.scale).float().softmax(3).to(v.dtype)
        return attention.out_fc(merge_heads(weights @ v))

    once = x + ask(encoder.attention1, x)
    return norm(encoder.norm, x + ask(encoder.attention2, once))


def turned(x: Tensor, turn: Tensor, theta: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, T, d) at relative positions (B or 1, T)."""
    angle = (turn[..., None] * theta.flatten())[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=3)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)


def velocity(
    field: Any,
    dilations: Any,
    last_dilations: Any,
    latent: Tensor,  # (B, L, 108), all rows L long
    text_emb: Tensor,  # (B, T, C)
    text_lengths: Tensor,  # (B,)
    style_ttl: Tensor,  # (B, n_style, style_dim)
    t: Tensor,  # (B,)
    copies: int = 1,  # latent holds each text so many times, in a row
) -> tuple[Tensor, list[Tensor]]:
    """`VectorField`: (B, L, 108) and the text attention of each group, (B, heads, L, T)."""
    length, n_text = latent.shape[1], text_emb.shape[1]
    here = torch.arange(length, device=latent.device)[None] / length
    there = torch.arange(n_text, device=latent.device) / text_lengths[:, None]
    keys = (torch.arange(n_text, device=latent.device) < text_lengths[:, None])[:, None, None]
    x = F.linear(latent, field.proj_in.net.weight[:, :, 0])
    time = field.time_encoder(t)
    attended = []

    def repeat(y: Tensor) -> Tensor:
        return y.repeat_interleave(copies, 0) if copies > 1 else y

    keys = repeat(keys)
    blocks = field.main_blocks
    for group in range(0, len(blocks), 6):
        dilated, on_time, before_text, on_text, before_style, on_style = blocks[group : group + 6]
        for block, dilation in zip(dilated.convnext, dilations, strict=True):
            x = conv_block(block, x, dilation)
        x = x + on_time.linear(time)[:, None]
        x = conv_block(before_text.convnext[0], x, 1)
        text = on_text.attn
        q = turned(split_heads(text.W_query(x), text.heads), here, text.theta)
        k = repeat(turned(split_heads(text.W_key(text_emb), text.heads), there, text.theta))
        v = repeat(split_heads(text.W_value(text_emb), text.heads))
        scores = (q @ k.mT * text.scale).float()
        weights = scores.masked_fill(~keys, -torch.inf).softmax(3)
        attended.append(weights)
        x = norm(on_text.norm, x + text.out_fc(merge_heads(weights.to(v.dtype) @ v)))
        x = conv_block(before_style.convnext[0], x, 1)
        style = on_style.attention
        q = split_heads(style.W_query(x), style.heads)
        k = split_heads(style.W_key(style.key_emb).tanh(), style.heads)
        v = repeat(split_heads(style.W_value(style_ttl), style.heads))
        weights = (q @ k.mT * style.scale).float().softmax(3).to(v.dtype)
        x = norm(on_style.norm, x + style.out_fc(merge_heads(weights @ v)))
    for block, dilation in zip(field.last_convnext.convnext, last_dilations, strict=True):
        x = conv_block(block, x, dilation)
    return F.linear(x, field.proj_out.net.weight[:, :, 0]), attended


def sentence_seconds(
    predictor: Any, text_ids: Tensor, lengths: Tensor, style_dp: Tensor, dilations: Any
) -> Tensor:
    """`DurationPredictor`: (B,) seconds."""
    encoder = predictor.sentence_encoder
    token = encoder.sentence_token.mT.expand(len(text_ids), -1, -1)
    x = torch.cat([token, encoder.text_embedder.char_embedder(text_ids)], dim=1)
    keys = (torch.arange(x.shape[1], device=x.device) <= lengths[:, None])[:, None, None]
    for block, dilation in zip(encoder.convnext.convnext, dilations, strict=True):
        x = conv_block(block, fill(x, lengths + 1), dilation)
    x = attention_encoder(encoder.attn_encoder, x, keys) + x
    sentence = F.linear(x[:, 0], encoder.proj_out.net.weight[:, :, 0])
    return predictor.predictor(sentence.float(), style_dp)


def causal_conv(conv: Any, x: Tensor) -> Tensor:
    """A full causal convolution as one product; the first frame is repeated before the start."""
    kernel, length = conv.kernel_size[0], x.shape[1]
    wide = torch.cat([x[:, :1].expand(-1, kernel - 1, -1), x], dim=1)
    seen = torch.cat([wide[:, k : k + length] for k in range(kernel)], dim=2)
    return F.linear(seen, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def causal_block(block: Any, x: Tensor, dilation: int) -> Tensor:
    conv = block.dwconv.net
    reach = (conv.weight.shape[2] - 1) * dilation
    y = Depthwise.apply(x, conv.weight[:, 0], conv.bias, dilation, reach, 0)
    return pointwise(block, x, y)


def waveform(decoder: Any, frames: Tensor, dilations: Any) -> Tensor:
    """`Decoder`: (B, F, 18) base frames to (B, 256 F) samples."""
    x = causal_conv(decoder.embed.net, frames)
    for block, dilation in zip(decoder.convnext, dilations, strict=True):
        x = causal_block(block, x, dilation)
    x = decoder.final_norm(x.mT).mT
    x = decoder.head.act(causal_conv(decoder.head.layer1.net, x))
    return F.linear(x, decoder.head.layer2.weight[:, :, 0]).flatten(1)
