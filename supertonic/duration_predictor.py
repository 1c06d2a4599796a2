"""Text and voice to seconds: how long the whole utterance takes at speed 1.

A learned sentence token is put before the characters; what attention gathers there, together with
the voice's small duration style, goes through two linear layers that predict log seconds.
"""

import torch
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.layers import AttentionEncoder, ConvNeXt, Projection, Span, TextEmbedder


class SentenceEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.duration_predictor
        self.text_embedder = TextEmbedder(config.vocabulary, sizes.width)
        self.sentence_token = nn.Parameter(torch.zeros(1, sizes.width, 1))
        self.convnext = ConvNeXt(sizes.width, sizes.convnext_hidden, sizes.dilations)
        self.attn_encoder = AttentionEncoder(
            sizes.width, sizes.ffn_hidden, sizes.heads, sizes.attention_layers
        )
        self.proj_out = Projection(sizes.width, sizes.width)

    def forward(
        self,
        text_ids: Tensor,  # (B, T)
        text_lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, width)
        token = self.sentence_token.expand(len(text_ids), -1, -1)
        x = torch.cat([token, self.text_embedder(text_ids)], dim=2)
        span = Span.of(text_lengths + 1, x.shape[2], x.dtype)  # the token counts as a position
        local = self.convnext(x, span)
        everywhere = self.attn_encoder(local, span)
        return self.proj_out((everywhere + local)[:, :, :1])[:, :, 0]


class DurationHead(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.duration_predictor
        inputs = sizes.width + sizes.n_style * sizes.style_dim
        self.layers = nn.ModuleList(
            [nn.Linear(inputs, sizes.head_hidden), nn.Linear(sizes.head_hidden, 1)]
        )
        self.activation = nn.PReLU()

    def forward(self, sentence: Tensor, style_dp: Tensor) -> Tensor:
        x = torch.cat([sentence, style_dp.flatten(1)], dim=1)
        return self.layers[1](self.activation(self.layers[0](x)))[:, 0].exp()


class DurationPredictor(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sentence_encoder = SentenceEncoder(config)
        self.predictor = DurationHead(config)

    def forward(
        self,
        text_ids: Tensor,  # (B, T)
        text_lengths: Tensor,  # (B,)
        style_dp: Tensor,  # (B, 8, 16)
    ) -> Tensor:  # (B,) seconds at speed 1, in the precision of the weights
        sentence = self.sentence_encoder(text_ids, text_lengths)
        return self.predictor(sentence, style_dp.to(sentence.dtype))
