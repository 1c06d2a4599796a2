"""The same model, prepared to run fast: `prepare(model, device, precision)`.

`model.py` is the truth, and tests hold this copy to it. Here the constants are folded into the
weights, what does not change between steps is computed once, and rows lie packed behind each
other (`rows.py`), so that padding is never computed. Matrix products run in the precision
asked for; the rest (norms, softmax, angles, the latent and its steps) stays float32. Durations are
predicted in float64 always, so that sample counts are the same everywhere.
"""

import itertools
from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.errors import ConfigError
from supertonic.kernels import PART, Form, Past
from supertonic.memory import give_back
from supertonic.model import Batch, Draw, Seed, Supertonic, draw_noise
from supertonic.prepared_estimator import PreparedEstimator
from supertonic.prepared_text import PreparedDuration, PreparedText
from supertonic.prepared_vocoder import PreparedVocoder
from supertonic.rows import Rows, send

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

    duration_predictor: PreparedDuration  # type: ignore[assignment]
    text_encoder: PreparedText  # type: ignore[assignment]
    vector_estimator: PreparedEstimator  # type: ignore[assignment]
    vocoder: PreparedVocoder  # type: ignore[assignment]

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


def slice_ends(n_frames: int) -> list[int]:
    """Where slices of a row end: a short one to begin with, each twice as long as the last.

    While one is heard, the next is computed; and few slices cost little. A last piece of less than
    half its turn goes with the one before it.
    """
    sizes = [FIRST_SLICE << k for k in range(n_frames.bit_length())]
    ends = zip(itertools.accumulate(sizes), sizes, strict=True)
    return [end for end, size in ends if n_frames - end >= size] + [n_frames]
