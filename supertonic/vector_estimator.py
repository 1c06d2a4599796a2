"""One denoising step: noisy latent, text and voice to a slightly less noisy latent.

`VectorField` predicts the velocity, `VectorEstimator` follows it for one Euler step. What depends
on text and voice but not on the step is computed once per batch, in `listen`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.layers import (
    ChannelNorm,
    ConvNeXt,
    Linear,
    Projection,
    Span,
    merge_heads,
    split_heads,
)

ROTARY_BASE = 10000.0
ROTARY_SCALE = 10.0  # radians that the fastest pair turns over a whole utterance
PUBLISHED_POSITIONS = 1000  # length of the stored `increments`; positions are computed, not read


@dataclass(frozen=True)
class Heard:
    """What one group of blocks knows about text and voice; the same at every step."""

    text_k: Tensor  # (B, text heads, T, d), rotated
    text_v: Tensor  # (B, text heads, T, d)
    style_k: Tensor  # (1, style heads, n_style, d)
    style_v: Tensor  # (B, style heads, n_style, d)
    text_keys: Tensor  # (B, 1, 1, T) bool

    def first(self, n_rows: int) -> "Heard":
        return Heard(
            self.text_k[:n_rows],
            self.text_v[:n_rows],
            self.style_k,
            self.style_v[:n_rows],
            self.text_keys[:n_rows],
        )


class TimeEncoder(nn.Module):
    def __init__(self, time_dim: int, hidden: int) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.mlp = nn.Sequential(Linear(time_dim, hidden), nn.Mish(), Linear(hidden, time_dim))

    def forward(self, t: Tensor) -> Tensor:  # (B,) in [0, 1) to (B, time_dim)
        half = self.time_dim // 2
        # In float32 this order of operations matters: others differ by up to 8e-6 in the latent.
        frequency = torch.exp(
            torch.arange(half, device=t.device, dtype=t.dtype)
            * (-math.log(10000) / max(half - 1, 1))
        )
        angle = (1000 * t)[:, None] * frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class TimeCondition(nn.Module):
    """Adds the same vector to every frame."""

    def __init__(self, time_dim: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(time_dim, width)

    def forward(self, x: Tensor, time: Tensor, span: Span) -> Tensor:
        return (x + self.linear(time)[:, :, None]) * span.mask


class TextAttention(nn.Module):
    """Frames look at characters through a rotary embedding of *relative* position.

    A position is divided by the length of its own row, so that the middle of the speech looks at
    the middle of the text whatever the two lengths are. That length is the row's, never the
    padded one: a row must not change with its neighbours.
    """

    theta: Tensor  # (1, 1, d / 2)
    increments: Tensor

    def __init__(self, config: ModelConfig, theta: Tensor, increments: Tensor) -> None:
        super().__init__()
        sizes, text_width = config.vector_estimator, config.text_encoder.width
        self.heads = sizes.text_heads
        self.scale = 1 / math.sqrt(text_width)  # of the text width, not of one head
        self.register_buffer("theta", theta)
        self.register_buffer("increments", increments)
        self.W_query = Linear(sizes.width, sizes.attention_width)
        self.W_key = Linear(text_width, sizes.attention_width)
        self.W_value = Linear(text_width, sizes.attention_width)
        self.out_fc = Linear(sizes.attention_width, sizes.width)

    def keys_and_values(self, text_emb: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        k = split_heads(self.W_key(text_emb.mT), self.heads)
        v = split_heads(self.W_value(text_emb.mT), self.heads)
        return self._rotate(k, span), v

    def forward(self, x: Tensor, heard: Heard, span: Span) -> Tensor:
        q = self._rotate(split_heads(self.W_query(x.mT), self.heads), span)
        found = F.scaled_dot_product_attention(
            q, heard.text_k, heard.text_v, attn_mask=heard.text_keys, scale=self.scale
        )
        return self.out_fc(merge_heads(found)).mT

    def _rotate(self, x: Tensor, span: Span) -> Tensor:  # (B, heads, T, d)
        position = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        turn = position[None, :, None] / span.lengths[:, None, None].to(x.dtype)
        angle = (turn * self.theta)[:, None]  # (B, 1, T, d / 2)
        cos, sin = angle.cos(), angle.sin()
        a, b = x.chunk(2, dim=3)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)


class StyleAttention(nn.Module):
    """Frames look at style tokens: the keys are learned constants, the values are the voice's."""

    def __init__(self, config: ModelConfig, key_emb: nn.Parameter) -> None:
        super().__init__()
        sizes = config.vector_estimator
        self.heads = sizes.style_heads
        self.scale = 1 / math.sqrt(sizes.attention_width)  # of all heads together, not of one
        self.key_emb = key_emb  # (1, n_style, style_dim)
        self.W_query = Linear(sizes.width, sizes.attention_width)
        self.W_key = Linear(config.style_dim, sizes.attention_width)
        self.W_value = Linear(config.style_dim, sizes.attention_width)
        self.out_fc = Linear(sizes.attention_width, sizes.width)

    def keys_and_values(self, style_ttl: Tensor) -> tuple[Tensor, Tensor]:
        k = split_heads(self.W_key(self.key_emb).tanh(), self.heads)
        return k, split_heads(self.W_value(style_ttl), self.heads)

    def forward(self, x: Tensor, heard: Heard) -> Tensor:
        q = split_heads(self.W_query(x.mT), self.heads)
        k = heard.style_k.expand(len(x), -1, -1, -1)
        found = F.scaled_dot_product_attention(q, k, heard.style_v, scale=self.scale)
        return self.out_fc(merge_heads(found)).mT


class TextCondition(nn.Module):
    def __init__(self, config: ModelConfig, theta: Tensor, increments: Tensor) -> None:
        super().__init__()
        self.attn = TextAttention(config, theta, increments)
        self.norm = ChannelNorm(config.vector_estimator.width)

    def forward(self, x: Tensor, heard: Heard, span: Span) -> Tensor:
        return self.norm(x + self.attn(x, heard, span)) * span.mask


class StyleCondition(nn.Module):
    def __init__(self, config: ModelConfig, key_emb: nn.Parameter) -> None:
        super().__init__()
        self.attention = StyleAttention(config, key_emb)
        self.norm = ChannelNorm(config.vector_estimator.width)

    def forward(self, x: Tensor, heard: Heard, span: Span) -> Tensor:
        return self.norm(x + self.attention(x, heard)) * span.mask


class VectorField(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.vector_estimator
        width, hidden = sizes.width, sizes.convnext_hidden
        # One tensor each, shared by all groups; the published file repeats them under every name.
        half = sizes.attention_width // sizes.text_heads // 2
        theta = ROTARY_SCALE * ROTARY_BASE ** (-torch.arange(half).view(1, 1, -1) / half)
        increments = torch.arange(PUBLISHED_POSITIONS, dtype=torch.float32).view(1, -1, 1)
        key_emb = nn.Parameter(torch.zeros(1, config.n_style, config.style_dim))

        self.proj_in = Projection(config.latent_dim, width)
        self.time_encoder = TimeEncoder(sizes.time_dim, sizes.time_hidden)
        self.main_blocks = nn.ModuleList()
        for _ in range(sizes.blocks):
            self.main_blocks.append(ConvNeXt(width, hidden, sizes.dilations))
            self.main_blocks.append(TimeCondition(sizes.time_dim, width))
            self.main_blocks.append(ConvNeXt(width, hidden, (1,)))
            self.main_blocks.append(TextCondition(config, theta, increments))
            self.main_blocks.append(ConvNeXt(width, hidden, (1,)))
            self.main_blocks.append(StyleCondition(config, key_emb))
        self.last_convnext = ConvNeXt(width, hidden, sizes.last_dilations)
        self.proj_out = Projection(width, config.latent_dim)

    def listen(self, text_emb: Tensor, text_span: Span, style_ttl: Tensor) -> list[Heard]:
        """What every group will know about text and voice, computed once for all steps."""
        texts = [block.attn for block in self.main_blocks if isinstance(block, TextCondition)]
        styles = [b.attention for b in self.main_blocks if isinstance(b, StyleCondition)]
        heard = []
        for text, style in zip(texts, styles, strict=True):
            text_k, text_v = text.keys_and_values(text_emb, text_span)
            style_k, style_v = style.keys_and_values(style_ttl)
            heard.append(Heard(text_k, text_v, style_k, style_v, text_span.keys))
        return heard

    def forward(
        self,
        latent: Tensor,  # (B, 144, L)
        span: Span,
        heard: list[Heard],
        t: Tensor,  # (B,) how far along each row is, in [0, 1)
    ) -> Tensor:  # (B, 144, L) velocity
        x = self.proj_in(latent) * span.mask
        time = self.time_encoder(t)
        for group, known in enumerate(heard):
            dilated, on_time, before_text, on_text, before_style, on_style = self.main_blocks[
                6 * group : 6 * group + 6
            ]
            x = dilated(x, span)
            x = on_time(x, time, span)
            x = before_text(x, span)
            x = on_text(x, known, span)
            x = before_style(x, span)
            x = on_style(x, known, span)
        return self.proj_out(self.last_convnext(x, span)) * span.mask


class VectorEstimator(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vector_field = VectorField(config)

    def listen(
        self,
        text_emb: Tensor,  # (B, 256, T)
        text_lengths: Tensor,  # (B,)
        style_ttl: Tensor,  # (B, 50, 256)
    ) -> list[Heard]:
        text_span = Span.of(text_lengths, text_emb.shape[2], text_emb.dtype)
        return self.vector_field.listen(text_emb, text_span, style_ttl)

    def forward(
        self,
        latent: Tensor,  # (B, 144, L)
        span: Span,
        heard: list[Heard],
        step: int,  # 0-based
        steps: Tensor,  # (B,) how many each row takes in all
    ) -> Tensor:  # (B, 144, L)
        velocity = self.vector_field(latent, span, heard, step / steps)
        return (latent + velocity / steps[:, None, None]) * span.mask
