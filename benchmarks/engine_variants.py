"""The same utterances, spoken by each competitor of `bench_engine`: the readable model, the two
prepared ones as an engine on a CPU runs them, and an ONNX Runtime export of the same weights.

Random weights would choose their own durations, so lengths are forced, and each competitor gets the
same noise. Every one has the same parts under the same names, which can be timed by themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supertonic.config import ModelConfig
from supertonic.layers import Span
from supertonic.model import Batch, Supertonic
from supertonic.passes import plan_passes, size_per_pass
from supertonic.prepared import Prepared
from supertonic.rows import Rows

TOKENS, FRAMES = 110, 100
CPU = torch.device("cpu")

Run = Callable[[], Any]


def random_model(config: ModelConfig) -> Supertonic:
    """The same on every run. No number is zero that would not be after training."""
    torch.manual_seed(1)
    model = Supertonic(config).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.1)
    return model


@dataclass
class Utterances:
    """Texts of so many tokens with noise of so many frames; one voice."""

    ids: list[Tensor]  # (T,) each
    noise: list[Tensor]  # (144, L) each
    style_ttl: Tensor  # (50, 256)
    style_dp: Tensor  # (8, 16)
    steps: int

    @classmethod
    def make(cls, config: ModelConfig, n_frames: Sequence[int], steps: int) -> "Utterances":
        torch.manual_seed(2)
        duration = config.duration_predictor
        n_tokens = [round(n * TOKENS / FRAMES) for n in n_frames]
        return cls(
            ids=[torch.randint(0, config.vocabulary, (n,)) for n in n_tokens],
            noise=[torch.randn(config.latent_dim, n) for n in n_frames],
            style_ttl=torch.randn(config.n_style, config.style_dim),
            style_dp=torch.randn(duration.n_style, duration.style_dim),
            steps=steps,
        )

    def batch(self, rows: Sequence[int] | None = None) -> Batch:
        """Padded, all rows or some."""
        ids = [self.ids[row] for row in (range(len(self)) if rows is None else rows)]
        n = len(ids)
        return Batch(
            text_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            text_lengths=torch.tensor([len(own) for own in ids]),
            style_ttl=self.style_ttl.expand(n, -1, -1),
            style_dp=self.style_dp.expand(n, -1, -1),
            speed=torch.ones(n),
            steps=[self.steps] * n,
            seeds=[(0, row) for row in range(n)],
        )

    def padded_noise(self) -> tuple[Tensor, Tensor]:
        """(B, 144, L) and frames per row."""
        rows = [noise.T for noise in self.noise]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded.mT.contiguous(), torch.tensor([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.ids)


class Truth:
    def __init__(self, model: Supertonic) -> None:
        self.model = model

    def parts(self, said: Utterances) -> dict[str, Run]:
        model, batch, (noise, n_frames) = self.model, said.batch(), said.padded_noise()
        ids, lengths, style_ttl = batch.text_ids, batch.text_lengths, batch.style_ttl
        steps = torch.tensor(batch.steps, dtype=torch.float32)
        estimator, span = model.vector_estimator, Span.of(n_frames, noise.shape[2], torch.float32)
        heard = estimator.listen(model.text_encoder(ids, lengths, style_ttl), lengths, style_ttl)
        return {
            "duration": lambda: model.durations(batch),
            "text": lambda: model.text_encoder(ids, lengths, style_ttl),
            "step": lambda: estimator(noise, span, heard, 0, steps),
            "vocoder": lambda: model.vocoder(noise),
        }

    def whole(self, said: Utterances) -> Any:
        model, batch, (noise, n_frames) = self.model, said.batch(), said.padded_noise()
        model.durations(batch)
        text_emb = model.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
        return model.vocoder(model.denoise(noise, n_frames, text_emb, batch))


class Ours:
    """A prepared model, in passes as the engine makes them: one per core where there are several.

    In float32 a single pass is shared by the threads, in bfloat16 not.
    """

    def __init__(self, model: Prepared) -> None:
        self.model = model
        self._cores: ThreadPoolExecutor | None = None
        self.threads = 1

    @contextmanager
    def on(self, threads: int) -> Iterator[None]:
        self.threads = threads
        start = lambda: torch.set_num_threads(1)  # noqa: E731
        with ThreadPoolExecutor(threads, initializer=start) as self._cores:
            yield
        self._cores, self.threads = None, 1

    def parts(self, said: Utterances) -> dict[str, Run]:
        model, batch = self.model, said.batch()
        frames = Rows([noise.shape[1] for noise in said.noise], CPU)
        characters = Rows([len(ids) for ids in said.ids], CPU)
        ids, style_ttl = torch.cat(said.ids), said.style_ttl.repeat(len(said), 1)
        text_emb = model.text_encoder(ids, characters, style_ttl)
        heard = model.vector_estimator.listen(text_emb, characters, style_ttl, frames)
        latent = torch.cat([noise.T for noise in said.noise]).contiguous()
        steps = [said.steps] * len(said)
        parts: dict[str, Run] = {
            "duration": lambda: model.durations(batch),
            "text": lambda: model.text_encoder(ids, characters, style_ttl),
            "step": lambda: model.vector_estimator(frames, latent, heard, 0, steps),
            "vocoder": lambda: model.vocoder(latent, frames),
        }
        return {name: self._threaded(part) for name, part in parts.items()}

    def whole(self, said: Utterances) -> Any:
        sizes = [len(ids) for ids in said.ids]
        passes = plan_passes(sizes, size_per_pass(self.model.config, "cpu"))[::-1]

        @torch.inference_mode()
        def speak(rows: list[int]) -> Tensor:
            return self._speak(said, rows)

        if len(passes) > 1 and self._cores is not None:
            return list(self._cores.map(speak, passes))
        one = self._threaded(lambda: [speak(rows) for rows in passes])()
        return one[0] if len(passes) == 1 else one

    def _speak(self, said: Utterances, rows: list[int]) -> Tensor:
        model = self.model
        model.durations(said.batch(rows))
        frames = Rows([said.noise[row].shape[1] for row in rows], CPU)
        characters = Rows([len(said.ids[row]) for row in rows], CPU)
        style_ttl = said.style_ttl.repeat(len(rows), 1)
        noise = torch.cat([said.noise[row].T for row in rows])
        ids = torch.cat([said.ids[row] for row in rows])
        text_emb = model.text_encoder(ids, characters, style_ttl)
        steps = [said.steps] * len(rows)
        latent = model.denoise(noise, frames, text_emb, characters, style_ttl, steps)
        waveform: Tensor = model.vocoder(latent, frames)
        return waveform

    def _threaded(self, run: Run) -> Run:
        is_shared = self.model.form.dtype == torch.float32

        def threaded() -> Any:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads if is_shared else 1)
            try:
                return run()
            finally:
                torch.set_num_threads(before)

        return threaded


class Onnx:
    """ONNX Runtime, with threads of its own."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx

    def parts(self, said: Utterances) -> dict[str, Run]:
        onnx, (ids, lengths, ttl, dp, noise, n_frames, steps) = self.onnx, _arrays(said)
        heard = onnx.listen(onnx.text(ids, lengths, ttl), lengths, ttl)
        return {
            "duration": lambda: onnx.duration(ids, lengths, dp),
            "text": lambda: onnx.text(ids, lengths, ttl),
            "step": lambda: onnx.step(noise, n_frames, lengths, 0, steps, heard),
            "vocoder": lambda: onnx.vocoder(noise),
        }

    def whole(self, said: Utterances) -> Any:
        onnx, (ids, lengths, ttl, dp, latent, n_frames, steps) = self.onnx, _arrays(said)
        onnx.duration(ids, lengths, dp)
        heard = onnx.listen(onnx.text(ids, lengths, ttl), lengths, ttl)
        for step in range(said.steps):
            latent = onnx.step(latent, n_frames, lengths, step, steps, heard)
        return onnx.vocoder(latent)

    def one_by_one(self, said: Utterances, run_all: Callable[..., Any] = map) -> None:
        """Each utterance by itself, the longest first."""
        rows = sorted(range(len(said)), key=lambda row: -len(said.ids[row]))
        list(run_all(lambda row: self.whole(_only(said, row)), rows))


def _only(said: Utterances, row: int) -> Utterances:
    return Utterances([said.ids[row]], [said.noise[row]], said.style_ttl, said.style_dp, said.steps)


def _arrays(said: Utterances) -> list[np.ndarray]:
    batch, (noise, n_frames) = said.batch(), said.padded_noise()
    tensors = [batch.text_ids, batch.text_lengths, batch.style_ttl, batch.style_dp, noise, n_frames]
    steps = np.full(len(said), said.steps, dtype=np.float32)
    return [*(tensor.contiguous().numpy() for tensor in tensors), steps]


def difference(found: Any, expected: Any) -> float:
    """Largest difference, as a share of the peak."""
    a, b = np.asarray(found).ravel(), np.asarray(expected).ravel()
    return float(np.abs(a - b).max() / np.abs(b).max())
