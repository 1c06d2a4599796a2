"""Characters and voice to the text embedding that the vector estimator listens to.

First the characters look at each other (ConvNeXt, then self-attention); then each of them looks
at the voice's style tokens, so that the embedding already knows who is speaking.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.layers import (
    AttentionEncoder,
    ChannelNorm,
    ConvNeXt,
    Linear,
    Span,
    TextEmbedder,
    merge_heads,
    split_heads,
)


class CharacterEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.text_encoder
        self.text_embedder = TextEmbedder(config.vocabulary, sizes.width)
        self.convnext = ConvNeXt(sizes.width, sizes.convnext_hidden, sizes.dilations)
        self.attn_encoder = AttentionEncoder(
            sizes.width, sizes.ffn_hidden, sizes.heads, sizes.attention_layers
        )

    def forward(self, text_ids: Tensor, span: Span) -> Tensor:
        local = self.convnext(self.text_embedder(text_ids), span)
        return (self.attn_encoder(local, span) + local) * span.mask


class StoredKeys(nn.Module):
    """Style keys that the published file stores already projected and squashed."""

    Tanh_output_0: Tensor  # (heads, 1, d, n_style): transposed, ready for the product

    def __init__(self, heads: int, head_dim: int, n_style: int) -> None:
        super().__init__()
        self.register_buffer("Tanh_output_0", torch.zeros(heads, 1, head_dim, n_style))

    def forward(self) -> Tensor:  # (1, heads, n_style, d)
        return self.Tanh_output_0.permute(1, 0, 3, 2)


class PromptAttention(nn.Module):
    """Characters look at style tokens: the keys are constants, only the values are the voice's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads = config.text_encoder.width, config.text_encoder.style_heads
        self.scale = 1 / math.sqrt(width)  # of all heads together, not of one
        self.W_query = Linear(width, width)
        self.W_value = Linear(config.style_dim, width)
        self.tanh = StoredKeys(self.heads, width // self.heads, config.n_style)
        self.out_fc = Linear(width, width)

    def forward(self, x: Tensor, style_ttl: Tensor) -> Tensor:
        q = split_heads(self.W_query(x.mT), self.heads)
        k = self.tanh().expand(len(x), -1, -1, -1)
        v = split_heads(self.W_value(style_ttl), self.heads)
        found = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_fc(merge_heads(found)).mT


class SpeechPromptedTextEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention1 = PromptAttention(config)
        self.attention2 = PromptAttention(config)
        self.norm = ChannelNorm(config.text_encoder.width)

    def forward(self, x: Tensor, style_ttl: Tensor, span: Span) -> Tensor:
        once = (x + self.attention1(x, style_ttl)) * span.mask
        # The published model adds the second attention to x, not to `once`.
        twice = x + self.attention2(once, style_ttl)
        return self.norm(twice) * span.mask


class TextEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.text_encoder = CharacterEncoder(config)
        self.speech_prompted_text_encoder = SpeechPromptedTextEncoder(config)

    def forward(
        self,
        text_ids: Tensor,  # (B, T)
        text_lengths: Tensor,  # (B,)
        style_ttl: Tensor,  # (B, 50, 256)
    ) -> Tensor:  # (B, 256, T)
        span = Span.of(text_lengths, text_ids.shape[1], style_ttl.dtype)
        x = self.text_encoder(text_ids, span)
        return self.speech_prompted_text_encoder(x, style_ttl, span)
