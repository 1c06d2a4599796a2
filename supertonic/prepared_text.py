"""The two parts that read a text, prepared: the duration predictor and the text encoder."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic.duration_predictor import DurationPredictor, SentenceEncoder
from supertonic.kernels import Dense, Form, Norm, RelativeSelfAttention, attend, blocks, scaled
from supertonic.layers import AttentionEncoder, split_heads
from supertonic.rows import Rows
from supertonic.text_encoder import CharacterEncoder, PromptAttention, TextEncoder


class PreparedDuration(nn.Module):
    """Characters, behind the sentence token, and voice to seconds at speed 1, in float64."""

    def __init__(self, predictor: DurationPredictor, form: Form) -> None:
        super().__init__()
        encoder, head = predictor.sentence_encoder, predictor.predictor
        characters = encoder.text_embedder.char_embedder.weight
        # The sentence token becomes the last row, a character like any other.
        token = encoder.sentence_token[0].T
        self.characters = Characters(form, torch.cat([characters, token]), encoder)
        self.proj_out = Dense(form, encoder.proj_out.net.weight[:, :, 0])
        slope, layers = float(head.activation.weight), cast(list[nn.Linear], head.layers)
        self.hidden = Dense(form, *scaled(layers[0]), activation="leaky_relu", slope=slope)
        self.seconds = Dense(form, *scaled(layers[1]))

    def with_token(self, text_ids: Tensor) -> Tensor:
        """(T,) ids of one text to (T + 1,)."""
        return F.pad(text_ids, (1, 0), value=len(self.characters.embedding) - 1)

    def forward(self, ids: Tensor, rows: Rows, style_dp: Tensor) -> Tensor:
        """(N,) ids with each row's token to (B,) seconds."""
        sentence = self.proj_out(self.characters(ids, rows).index_select(0, rows.starts))
        heard = torch.cat([sentence, style_dp.flatten(1).to(sentence.dtype)], dim=1)
        return self.seconds(self.hidden(heard)).flatten().exp()


class PreparedText(nn.Module):
    """Characters and voice to the text embedding: (N,) ids to (N, 256)."""

    def __init__(self, encoder: TextEncoder, form: Form) -> None:
        super().__init__()
        inner, prompted = encoder.text_encoder, encoder.speech_prompted_text_encoder
        self.characters = Characters(form, inner.text_embedder.char_embedder.weight, inner)
        self.prompts = [Prompt(prompted.attention1, form), Prompt(prompted.attention2, form)]
        self.norm = Norm(form, prompted.norm.norm)

    def forward(self, text_ids: Tensor, rows: Rows, style_ttl: Tensor) -> Tensor:
        x = self.characters(text_ids, rows)
        once = self.prompts[0](x, rows, style_ttl, plus=x)
        # Added to x, not to `once`: that is how the published model is.
        return self.norm(self.prompts[1](once, rows, style_ttl, plus=x))


class Characters:
    """What both begin with: each character, those near it, then all of the text."""

    def __init__(
        self,
        form: Form,
        embedding: Tensor,  # (characters, C)
        encoder: SentenceEncoder | CharacterEncoder,
    ) -> None:
        self.embedding = form.constant(embedding)
        self.convnext = blocks(encoder.convnext, form)
        self.attention = [AttentionLayer(form, *parts) for parts in _layers(encoder.attn_encoder)]

    def __call__(self, ids: Tensor, rows: Rows) -> Tensor:
        """(N,) ids to (N, C)."""
        local = self.embedding.index_select(0, ids)
        for block in self.convnext:
            local = block(local, rows)
        x = local
        for layer in self.attention:
            x = layer(x, rows)
        return x + local


def _layers(encoder: AttentionEncoder) -> list[tuple[Any, ...]]:
    lists = (encoder.attn_layers, encoder.norm_layers_1, encoder.ffn_layers, encoder.norm_layers_2)
    return list(zip(*lists, strict=True))


class AttentionLayer:
    def __init__(self, form: Form, attention: Any, norm_1: Any, ffn: Any, norm_2: Any) -> None:
        self.attention = RelativeSelfAttention(form, attention)
        self.norm_1, self.norm_2 = Norm(form, norm_1.norm), Norm(form, norm_2.norm)
        self.up = Dense(form, *scaled(ffn.conv_1), activation="relu")
        self.down = Dense(form, *scaled(ffn.conv_2))

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        x = self.norm_1(self.attention(x, rows))
        return self.norm_2(self.down(self.up(x), plus=x))


class Prompt:
    """Characters look at style tokens."""

    def __init__(self, attention: PromptAttention, form: Form) -> None:
        self.form, self.heads = form, attention.heads
        self.query = Dense(form, *scaled(attention.W_query.linear, attention.scale))
        self.value = Dense(form, *scaled(attention.W_value.linear))
        self.keys = form.constant(attention.tanh())  # (1, heads, n_style, d)
        self.out = Dense(form, *scaled(attention.out_fc.linear))

    def __call__(self, x: Tensor, rows: Rows, style_ttl: Tensor, plus: Tensor) -> Tensor:
        v = split_heads(rows.per_row(self.value(style_ttl)), self.heads)
        return self.out(attend(self.form, self.query(x), self.keys, v, rows), plus=plus)
