"""The vector estimator, prepared: what it knows about text and voice once, then step by step."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supertonic.kernels import Dense, Form, Norm, attend, blocks, rotate, scaled
from supertonic.layers import split_heads
from supertonic.rows import Rows, send
from supertonic.vector_estimator import StyleCondition, TextCondition, VectorEstimator


@dataclass(frozen=True)
class Heard:
    """What the estimator knows about text and voice; the same at every step."""

    text_k: list[Tensor]  # per group (B, text heads, longest, d), rotated
    text_v: list[Tensor]
    style_v: list[Tensor]  # per group (B, style heads, n_style, d)
    characters: Rows
    angles: tuple[Tensor, Tensor]  # cosine and sine per frame, (N, 1, d / 2)

    def first(self, frames: Rows, n_rows: int) -> "Heard":
        characters = Rows(self.characters.lengths[:n_rows], self.characters.device)
        longest = max(characters.lengths)
        return Heard(
            [k[:n_rows, :, :longest] for k in self.text_k],
            [v[:n_rows, :, :longest] for v in self.text_v],
            [v[:n_rows] for v in self.style_v],
            characters,
            (self.angles[0][: frames.n], self.angles[1][: frames.n]),
        )


class PreparedEstimator(nn.Module):
    """One denoising step of packed latents, and `listen` before the first."""

    def __init__(self, estimator: VectorEstimator, form: Form) -> None:
        super().__init__()
        field = estimator.vector_field
        main: Any = field.main_blocks
        texts = [block.attn for block in main if isinstance(block, TextCondition)]
        styles = [block.attention for block in main if isinstance(block, StyleCondition)]
        self.form = form
        self.proj_in = Dense(form, field.proj_in.net.weight[:, :, 0])
        self.groups = [Group(main[i : i + 6], form) for i in range(0, len(main), 6)]
        self.last = blocks(field.last_convnext, form)
        self.proj_out = Dense(form, field.proj_out.net.weight[:, :, 0])

        self.text_heads, self.style_heads = texts[0].heads, styles[0].heads
        self.theta = form.constant(texts[0].theta.flatten())  # (d / 2,)
        # All groups' keys and values in one product each.
        self.text_k = stacked(form, [attention.W_key.linear for attention in texts])
        self.text_v = stacked(form, [attention.W_value.linear for attention in texts])
        self.style_v = stacked(form, [attention.W_value.linear for attention in styles])

        self.time_encoder = copy.deepcopy(field.time_encoder).to(form.device)
        self.on_time = [
            copy.deepcopy(main[i].linear).to(form.device) for i in range(1, len(main), 6)
        ]
        self._times: dict[tuple[int, int], Tensor] = {}

    def listen(self, text_emb: Tensor, characters: Rows, style_ttl: Tensor, frames: Rows) -> Heard:
        n = len(self.groups)
        cos, sin = self._angles(characters)
        # The voice's values are computed per row, not kept per voice: 0.3 ms, a thousandth.
        return Heard(
            text_k=[
                characters.split_heads(rotate(k, cos, sin, self.text_heads), self.text_heads)
                for k in self.text_k(text_emb).chunk(n, dim=1)
            ],
            text_v=[
                characters.split_heads(v, self.text_heads)
                for v in self.text_v(text_emb).chunk(n, dim=1)
            ],
            style_v=[
                split_heads(frames.per_row(v), self.style_heads)
                for v in self.style_v(style_ttl).chunk(n, dim=1)
            ],
            characters=characters,
            angles=self._angles(frames),
        )

    def forward(
        self,
        frames: Rows,
        latent: Tensor,  # (N, 144)
        heard: Heard,
        step: int,  # 0-based
        steps: list[int],  # per row, how many it takes in all
    ) -> Tensor:  # (N, 144)
        times = torch.stack([self.time(step, steps_of_row) for steps_of_row in steps])
        sizes = torch.tensor([[1 / steps_of_row] for steps_of_row in steps])
        size = frames.spread(send(sizes, latent.device))
        return self.step(frames, latent, heard, times, size)

    def step(
        self,
        frames: Rows,
        latent: Tensor,  # (N, 144)
        heard: Heard,
        times: Tensor,  # (B, groups, width) what each group adds for the time
        size: Tensor,  # (N, 1) of the step, as a share of the whole way
    ) -> Tensor:  # (N, 144)
        x = self.proj_in(latent)
        for number, group in enumerate(self.groups):
            x = group(x, frames, heard, number, times[:, number])
        for block in self.last:
            x = block(x, frames)
        return torch.addcmul(latent, self.proj_out(x), size)

    def time(self, step: int, steps: int) -> Tensor:
        """(groups, width): what each group adds to every frame at this step of so many."""
        if (step, steps) not in self._times:
            time = self.time_encoder(send(torch.tensor([float(step)]), self.form.device) / steps)
            self._times[step, steps] = torch.cat([linear(time) for linear in self.on_time])
        return self._times[step, steps]

    def _angles(self, rows: Rows) -> tuple[Tensor, Tensor]:
        angle = (rows.turn * self.theta)[:, None]
        return angle.cos(), angle.sin()


class Group:
    """Six blocks: local, time, local, text, local, style."""

    def __init__(self, parts: Any, form: Form) -> None:
        dilated, _, before_text, on_text, before_style, on_style = parts
        self.form = form
        self.dilated, self.before_text = blocks(dilated, form), blocks(before_text, form)
        self.before_style = blocks(before_style, form)

        text, style = on_text.attn, on_style.attention
        self.text_heads = text.heads
        self.text_query = Dense(form, *scaled(text.W_query.linear, text.scale))
        self.text_out = Dense(form, *scaled(text.out_fc.linear))
        self.text_norm = Norm(form, on_text.norm.norm)
        self.style_query = Dense(form, *scaled(style.W_query.linear, style.scale))
        keys = split_heads(style.W_key(style.key_emb).tanh(), style.heads)
        self.style_k = form.constant(keys)  # (1, heads, n_style, d), whatever the voice
        self.style_out = Dense(form, *scaled(style.out_fc.linear))
        self.style_norm = Norm(form, on_style.norm.norm)

    def __call__(self, x: Tensor, rows: Rows, heard: Heard, number: int, time: Tensor) -> Tensor:
        for block in self.dilated:
            x = block(x, rows)
        x = x + rows.spread(time)
        for block in self.before_text:
            x = block(x, rows)

        q = rotate(self.text_query(x), *heard.angles, self.text_heads)
        k, v = heard.text_k[number], heard.text_v[number]
        found = attend(self.form, q, k, v, rows, heard.characters)
        x = self.text_norm(self.text_out(found, plus=x))

        for block in self.before_style:
            x = block(x, rows)
        q = self.style_query(x)
        found = attend(self.form, q, self.style_k, heard.style_v[number], rows)
        return self.style_norm(self.style_out(found, plus=x))


def stacked(form: Form, layers: list[nn.Linear]) -> Dense:
    """Several linear layers of one input: their outputs side by side."""
    weights, biases = zip(*[scaled(layer) for layer in layers], strict=True)
    return Dense(form, torch.cat(weights), torch.cat(biases))
