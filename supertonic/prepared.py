"""The same model, prepared to run fast: `prepare(model, device, precision)`.

`model.py` is the truth, and tests hold this copy to it. Here the constants are folded into the
weights, what does not change between steps is computed once, and rows lie packed behind each
other (`kernels.py`), so that padding is never computed. Matrix products run in the precision
asked for; the rest (norms, softmax, angles, the latent and its steps) stays float32. Durations are
predicted in float64 always, so that sample counts are the same everywhere.
"""

import copy
import itertools
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.duration_predictor import DurationPredictor
from supertonic.errors import ConfigError
from supertonic.kernels import (
    PART,
    ConvNeXtBlock,
    Dense,
    Form,
    Norm,
    Past,
    RelativeSelfAttention,
    Rows,
    Window,
    attend,
    rotate,
    scaled,
    send,
)
from supertonic.layers import AttentionEncoder, split_heads
from supertonic.memory import give_back
from supertonic.model import Batch, Draw, Seed, Supertonic, draw_noise
from supertonic.text_encoder import PromptAttention, TextEncoder
from supertonic.vector_estimator import StyleCondition, TextCondition, VectorEstimator
from supertonic.vocoder import Vocoder

FIRST_SLICE = 4  # frames; 0.28 s
PRECISIONS = ("float32", "bfloat16", "float16")


def prepare(model: Supertonic, device: str = "cpu", precision: str = "float32") -> "Prepared":
    """A fast copy of `model`; the model itself is not changed and may be dropped.

    ConfigError for a precision that does not exist, or float16 on a CPU.
    """
    check_precision(precision, device)
    threads = torch.get_num_threads()
    # A thousand small operations: on a busy machine threads that wait for each other take four
    # times as long.
    torch.set_num_threads(1)
    with torch.no_grad():
        prepared = Prepared(model, Form(torch.device(device), getattr(torch, precision)))
    torch.set_num_threads(threads)
    give_back()  # folding leaves some 80 MB, which glibc would keep
    return prepared


def check_precision(precision: str, device: str) -> None:
    """ConfigError that names what there is."""
    if precision not in PRECISIONS:
        known = ", ".join(["auto", *PRECISIONS])
        raise ConfigError(f"precision {precision!r} is not supported; this version has {known}")
    if precision == "float16" and device.startswith("cpu"):
        raise ConfigError("precision 'float16' needs a GPU; a CPU has float32 and bfloat16")


def has_fast_bfloat16(device: str = "cpu") -> bool:
    """Whether this device multiplies bfloat16 itself. Without, it is slower than float32."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Prepared(Supertonic):
    """Called like the model, with the same durations. Float32 results differ by rounding only.

    The parts have the model's names, but take packed rows.
    """

    duration_predictor: "PreparedDuration"  # type: ignore[assignment]
    text_encoder: "PreparedText"  # type: ignore[assignment]
    vector_estimator: "PreparedEstimator"  # type: ignore[assignment]
    vocoder: "PreparedVocoder"  # type: ignore[assignment]

    def __init__(self, model: Supertonic, form: Form) -> None:
        nn.Module.__init__(self)
        self.config, published = model.config, ModelConfig()

        def at_once(frames: int, part: str) -> int:
            """Frames in one product: as many times more as the model's part is smaller."""
            if form.is_exact_by_row:
                return frames
            own = getattr(self.config, part).convnext_hidden
            return frames * max(1, int(getattr(published, part).convnext_hidden // own))

        long = replace(form, is_long=True, most_frames=at_once(2 * PART, "vocoder"))
        form = replace(form, most_frames=at_once(PART, "vector_estimator"))
        self.form = form
        exact = replace(form, dtype=torch.float64)
        self.duration_predictor = PreparedDuration(model.duration_predictor, exact)
        self.text_encoder = PreparedText(model.text_encoder, form)
        self.vector_estimator = PreparedEstimator(model.vector_estimator, form)
        self.vocoder = PreparedVocoder(model.vocoder, long)

    def forward(self, batch: Batch, draw: Draw = draw_noise) -> tuple[Tensor, list[int]]:
        """Waveforms (B, N) and how many samples of each row are its own."""
        latent, frames, order, n_samples = self._latent(batch, draw)
        waveform = self.vocoder(latent, frames)
        whole = waveform.split([n * self.config.samples_per_frame for n in frames.lengths])
        by_row = dict(zip(order, whole, strict=True))
        rows = [by_row[row] for row in range(len(order))]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), n_samples

    def slices(
        self, batch: Batch, draw: Draw = draw_noise
    ) -> Generator[tuple[int, Tensor], bool | None, None]:
        """The same samples piece by piece, as (row, samples): all rows' first slices first.

        Who sends True gets what is left of each row in one piece.
        """
        latent, frames, order, n_samples = self._latent(batch, draw)
        per_frame, in_one = self.config.samples_per_frame, False
        starts = [sum(frames.lengths[:i]) for i in range(len(order))]
        done, pasts = [0] * len(order), [Past() for _ in order]
        while done != frames.lengths:
            for i, row in enumerate(order):
                begin, n = done[i], frames.lengths[i]
                if begin == n:
                    continue
                end = n if in_one else next(end for end in slice_ends(n) if end > begin)
                part = latent[starts[i] + begin : starts[i] + end]
                samples = self.vocoder(part, Rows([end - begin], frames.device), pasts[i])
                done[i] = end
                in_one = bool((yield row, samples[: n_samples[row] - begin * per_frame])) or in_one

    def _latent(self, batch: Batch, draw: Draw) -> tuple[Tensor, Rows, list[int], list[int]]:
        """Packed latent, its rows, which rows of the batch they are, and samples per row there."""
        # Rows with many steps first: those still at work are then the first few of the batch.
        order = sorted(range(len(batch.steps)), key=lambda row: -batch.steps[row])
        n_samples = self.durations(batch)
        n_frames = [-(-n_samples[row] // self.config.samples_per_frame) for row in order]
        frames = Rows(n_frames, self.form.device)
        seeds = [batch.seeds[row] for row in order]
        noise = self.noise(seeds, frames, draw)

        lengths = batch.text_lengths.tolist()
        characters = Rows([lengths[row] for row in order], self.form.device)
        text_ids = torch.cat([batch.text_ids[row, : lengths[row]] for row in order])
        style_ttl = batch.style_ttl[order].flatten(0, 1)
        steps = [batch.steps[row] for row in order]

        text_emb = self.text_encoder(text_ids, characters, style_ttl)
        latent = self.denoise(noise, frames, text_emb, characters, style_ttl, steps)
        return latent, frames, order, n_samples

    def durations(self, batch: Batch) -> list[int]:
        lengths = batch.text_lengths.tolist()
        each = [ids[:n] for ids, n in zip(batch.text_ids, lengths, strict=True)]
        ids = torch.cat([self.duration_predictor.with_token(own) for own in each])
        rows = Rows([n + 1 for n in lengths], self.form.device)
        seconds = self.duration_predictor(ids, rows, batch.style_dp)
        return self.n_samples(seconds.float(), batch.speed).tolist()

    def noise(self, seeds: list[Seed], frames: Rows, draw: Draw) -> Tensor:  # type: ignore[override]
        """(N, 144) packed initial noise, the same numbers as the model's."""
        channels = self.config.latent_dim
        rows = [draw(seed, (channels, n)) for seed, n in zip(seeds, frames.lengths, strict=True)]
        return send(torch.cat([torch.from_numpy(row).T for row in rows]), frames.device)

    def denoise(  # type: ignore[override]
        self,
        latent: Tensor,  # (N, 144), rows in the order of falling steps
        frames: Rows,
        text_emb: Tensor,  # (M, 256)
        characters: Rows,
        style_ttl: Tensor,  # (B · 50, 256)
        steps: list[int],
    ) -> Tensor:  # (N, 144)
        done: list[Tensor] = []  # rows that have had their steps, last row first
        heard = self.vector_estimator.listen(text_emb, characters, style_ttl, frames)
        for step in range(steps[0]):
            n = sum(steps_of_row > step for steps_of_row in steps)
            if n < len(frames):
                frames = Rows(frames.lengths[:n], frames.device)
                done.append(latent[frames.n :])
                latent, heard = latent[: frames.n], heard.first(frames, n)
            latent = self.vector_estimator(frames, latent, heard, step, steps[:n])
        return torch.cat([latent, *reversed(done)])


class PreparedDuration(nn.Module):
    """Characters, behind the sentence token, and voice to seconds at speed 1, in float64."""

    def __init__(self, predictor: DurationPredictor, form: Form) -> None:
        super().__init__()
        encoder, head = predictor.sentence_encoder, predictor.predictor
        characters = encoder.text_embedder.char_embedder.weight
        # The sentence token becomes the last row, a character like any other.
        token = encoder.sentence_token[0].T
        self.embedding = form.constant(torch.cat([characters, token]))
        self.convnext = blocks(encoder.convnext, form)
        self.attention = [AttentionLayer(form, *parts) for parts in _layers(encoder.attn_encoder)]
        self.proj_out = Dense(form, encoder.proj_out.net.weight[:, :, 0])
        slope, layers = float(head.activation.weight), cast(list[nn.Linear], head.layers)
        self.hidden = Dense(form, *scaled(layers[0]), activation="leaky_relu", slope=slope)
        self.seconds = Dense(form, *scaled(layers[1]))

    def with_token(self, text_ids: Tensor) -> Tensor:
        """(T,) ids of one text to (T + 1,)."""
        return F.pad(text_ids, (1, 0), value=len(self.embedding) - 1)

    def forward(self, ids: Tensor, rows: Rows, style_dp: Tensor) -> Tensor:
        """(N,) ids with each row's token to (B,) seconds."""
        local = self.embedding.index_select(0, ids)
        for block in self.convnext:
            local = block(local, rows)
        x = local
        for layer in self.attention:
            x = layer(x, rows)
        sentence = self.proj_out((x + local).index_select(0, rows.starts))
        heard = torch.cat([sentence, style_dp.flatten(1).to(sentence.dtype)], dim=1)
        return self.seconds(self.hidden(heard)).flatten().exp()


class PreparedText(nn.Module):
    """Characters and voice to the text embedding: (N,) ids to (N, 256)."""

    def __init__(self, encoder: TextEncoder, form: Form) -> None:
        super().__init__()
        inner, prompted = encoder.text_encoder, encoder.speech_prompted_text_encoder
        self.embedding = form.constant(inner.text_embedder.char_embedder.weight)
        self.convnext = blocks(inner.convnext, form)
        self.attention = [AttentionLayer(form, *parts) for parts in _layers(inner.attn_encoder)]
        self.prompts = [Prompt(prompted.attention1, form), Prompt(prompted.attention2, form)]
        self.norm = Norm(form, prompted.norm.norm)

    def forward(self, text_ids: Tensor, rows: Rows, style_ttl: Tensor) -> Tensor:
        local = self.embedding.index_select(0, text_ids)
        for block in self.convnext:
            local = block(local, rows)
        x = local
        for layer in self.attention:
            x = layer(x, rows)
        x = x + local
        once = self.prompts[0](x, rows, style_ttl, plus=x)
        # Added to x, not to `once`: that is how the published model is.
        return self.norm(self.prompts[1](once, rows, style_ttl, plus=x))


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
        v = split_heads(_per_row(self.value(style_ttl), rows), self.heads)
        return self.out(attend(self.form, self.query(x), self.keys, v, rows), plus=plus)


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
                split_heads(_per_row(v, frames), self.style_heads)
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


class PreparedVocoder(nn.Module):
    """Packed latent (N, 144) to packed waveform (3072 · N,)."""

    def __init__(self, vocoder: Vocoder, form: Form) -> None:
        super().__init__()
        decoder: Any = vocoder.decoder
        self.ldim = vocoder.ldim

        # embed(z / scale · std + mean): an edge that repeats a frame repeats it scaled as well.
        conv = decoder.embed.net
        scale = (vocoder.latent_std / vocoder.normalizer.scale).flatten()
        self.embed = window(form, conv, scale, vocoder.latent_mean.flatten())
        self.blocks = [
            ConvNeXtBlock(form, block.dwconv.net, block, is_causal=True)
            for block in decoder.convnext
        ]
        norm = decoder.final_norm.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        slope = float(decoder.head.act.weight)
        self.layer1 = window(form, decoder.head.layer1.net, scale, shift, slope)
        self.layer2 = Dense(form, decoder.head.layer2.weight[:, :, 0])

    def forward(self, latent: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        """With `past`, one row's next frames: it remembers what the convolutions look back at."""
        # Channel 6c + r of frame l is channel c of base frame 6l + r.
        base_frames = latent.view(rows.n, self.ldim, -1).mT
        rows = rows.times(base_frames.shape[1])
        x = self.embed(base_frames.reshape(rows.n, self.ldim), rows, past)
        for block in self.blocks:
            x = block(x, rows, past)
        return self.layer2(self.layer1(x, rows, past)).flatten()


def slice_ends(n_frames: int) -> list[int]:
    """Where slices of a row end: a short one to begin with, each twice as long as the last.

    While one is heard, the next is computed; and few slices cost little. A last piece of less than
    half its turn goes with the one before it.
    """
    sizes = [FIRST_SLICE << k for k in range(n_frames.bit_length())]
    ends = zip(itertools.accumulate(sizes), sizes, strict=True)
    return [end for end, size in ends if n_frames - end >= size] + [n_frames]


def _per_row(packed: Tensor, rows: Rows) -> Tensor:
    """(B · n, C) to (B, n, C), where every row has as many."""
    return packed.view(len(rows), -1, packed.shape[1])


def blocks(convnext: Any, form: Form) -> list[ConvNeXtBlock]:
    return [
        ConvNeXtBlock(form, block.dwconv, block, is_causal=False) for block in convnext.convnext
    ]


def stacked(form: Form, layers: list[nn.Linear]) -> Dense:
    """Several linear layers of one input: their outputs side by side."""
    weights, biases = zip(*[scaled(layer) for layer in layers], strict=True)
    return Dense(form, torch.cat(weights), torch.cat(biases))


def window(
    form: Form, conv: nn.Conv1d, scale: Tensor, shift: Tensor, slope: float | None = None
) -> Window:
    """conv(x · scale + shift), per input channel; with a slope, a PReLU behind it."""
    assert conv.bias is not None
    weight = (conv.weight * scale[:, None]).transpose(1, 2).flatten(1)  # (outputs, k · inputs)
    bias = conv.bias + conv.weight.sum(dim=2) @ shift
    activation = "none" if slope is None else "leaky_relu"
    return Window(conv.kernel_size[0], Dense(form, weight, bias, activation, slope or 0.0))
