"""A loaded model on a device: `synthesize(utterances)`.

The engine knows text, voices and devices; the model below it knows only tensors. What a caller
gets for an utterance depends on that utterance alone, never on what else was in the list.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from supertonic.characters import encode
from supertonic.errors import UnknownLanguage, UnknownVoice
from supertonic.graphs import Graphs
from supertonic.model import Batch, Supertonic
from supertonic.passes import is_small, plan_passes, size_per_pass
from supertonic.prepared import FIRST_SLICE, Prepared
from supertonic.styles import Style, mix
from supertonic.utterance import Audio, OnSlice, Utterance, in_parts, joined
from supertonic.voices import shares

# Words and rows of the batches for which a GPU has graphs from the start.
WARM_SHAPES = [(5, 1), (7, 1), (20, 1), (5, 4), (5, 16), (20, 8), (40, 8), (20, 32)]

KEPT_MIXTURES = 100  # some 50 KB each


class SliceRate:
    """How long decoding takes here, as measured while it happens."""

    def __init__(self, first_slice_s: float) -> None:
        self.first_slice_s = first_slice_s  # of audio
        self.s_per_audio_s = 0.0

    def heard(self, s_per_audio_s: float) -> None:
        # A moving mean: other jobs come and go on the machine.
        known = self.s_per_audio_s or s_per_audio_s
        self.s_per_audio_s = known + 0.2 * (s_per_audio_s - known)

    def save_s(self, audio_s: float) -> float:
        """What comes after the first slice need not be waited for."""
        return max(0.0, audio_s - self.first_slice_s) * self.s_per_audio_s


class Engine:
    """A loaded model on a device. On a CPU as many threads as it has cores may use it at the same
    time, each with ``cores=1``; on a GPU a single one.
    """

    def __init__(
        self,
        model: Supertonic,
        styles: dict[str, Style],
        *,
        name: str,
        description: str,
        is_builtin: bool,
        fingerprint: str,
        device: str,
        precision: str,
    ) -> None:
        self.name = name
        self.description = description
        self.is_builtin = is_builtin
        self.fingerprint = fingerprint
        self.device = device
        self.precision = precision
        self.sample_rate = model.config.sample_rate
        self.voices = tuple(styles)
        self.languages = model.config.languages
        self.longest_text = model.config.longest_text
        self._styles = styles
        self._mixed: dict[str, Style] = {}
        self.model = model.to(device).eval()
        # Durations in double precision: float32 rounds differently with the shape of the batch,
        # and a difference of 1e-7 changes the number of samples of one short utterance in sixty
        # and of one long one in five (measured). A row would then be longer than it is alone,
        # and sometimes by a frame, with other noise.
        self.model.duration_predictor.double()
        self.slices = SliceRate(FIRST_SLICE * model.config.samples_per_frame / self.sample_rate)
        self.size_per_pass = size_per_pass(model.config, device)
        cores = torch.get_num_threads()
        # Threads of a pass that has the machine to itself. In a small model an operation takes
        # microseconds: a second thread gains nothing, and on a busy machine its waiting turned
        # 17 ms into 3 seconds. In bfloat16 it is not much better, and shared products sum in
        # another order.
        does_share = precision == "float32" and not is_small(model.config)
        self._threads = cores if does_share else 1
        self.graphs: Graphs | None = None
        if device.startswith("cuda") and isinstance(self.model, Prepared):
            self.graphs = Graphs(self.model)
        self.batches_at_once = cores if device == "cpu" else 1
        self._cores: ThreadPoolExecutor | None = None
        if device == "cpu" and cores > 1:
            self._cores = ThreadPoolExecutor(cores, "core")

    def synthesize(
        self,
        utterances: list[Utterance],
        on_slice: OnSlice | None = None,
        cores: int | None = None,
    ) -> list[Audio]:
        """Speak each utterance, in order, on so many cores of a CPU, or on all.

        Where all fit one pass, `on_slice(i, samples)` hears utterance i's samples in pieces as
        they are made, the first after a quarter of a second of sound; all of them are in the
        answer too. It is called in the caller's thread, and may ask for the rest in one piece.

        A text that is longer than the model can follow is spoken in parts.

        Raises EmptyText, UnknownLanguage, UnknownVoice, or ValueError for steps, speed or seed;
        FloatingPointError when the model computes what is no sound.
        """
        for utterance in utterances:
            self._check(utterance)
        parts = [in_parts(utterance, self.longest_text) for utterance in utterances]
        if on_slice is None or all(len(own) == 1 for own in parts):
            spoken = iter(self._synthesize([one for own in parts for one in own], on_slice, cores))
            return [joined([next(spoken) for _ in own]) for own in parts]
        # A listener hears slices in order, so there the second parts follow the first ones.
        heard: list[list[Audio]] = [[] for _ in parts]
        is_over = False
        for number in range(max(map(len, parts))):
            rows = [row for row, own in enumerate(parts) if len(own) > number]
            slicing = None if is_over else _Slicing(rows, on_slice)
            audios = self._synthesize([parts[row][number] for row in rows], slicing, cores)
            for row, audio in zip(rows, audios, strict=True):
                heard[row].append(audio)
            # Later parts may not be heard before earlier ones.
            is_over = slicing is None or slicing.is_over
        return [joined(own) for own in heard]

    def _synthesize(
        self, utterances: list[Utterance], on_slice: OnSlice | None, cores: int | None
    ) -> list[Audio]:
        cores = min(cores or self.batches_at_once, self.batches_at_once)
        text_ids = [encode(utterance.text, utterance.language) for utterance in utterances]
        audio: dict[int, Audio] = {}
        sizes = [len(ids) / u.speed for ids, u in zip(text_ids, utterances, strict=True)]
        passes = plan_passes(sizes, self.size_per_pass)
        is_sliced = on_slice is not None and len(passes) == 1 and isinstance(self.model, Prepared)
        if cores > 1 and not is_sliced:
            # Short rows too are shared out among the cores, rather than put into one pass.
            share = sum(sizes) / cores
            passes = plan_passes(sizes, min(self.size_per_pass, share))
        is_shared_out = self._cores is not None and cores > 1 and len(passes) > 1
        threads = 1 if is_shared_out else min(self._threads, cores)

        def run(rows: list[int]) -> list[Audio]:
            self._use_threads(threads)
            return self._run([text_ids[i] for i in rows], [utterances[i] for i in rows])

        if on_slice is not None and is_sliced:
            self._use_threads(threads)
            return self._run_in_slices(self.collate(text_ids, utterances), on_slice)
        if self._cores is not None and is_shared_out:
            # One pass per core: nobody waits for another's half of a matrix product. The longest
            # first, so that all cores are done at about the same time.
            passes.reverse()
            spoken = list(self._cores.map(run, passes))
        else:
            spoken = [run(rows) for rows in passes]
        for rows, audio_of_pass in zip(passes, spoken, strict=True):
            audio.update(zip(rows, audio_of_pass, strict=True))
        return [audio[i] for i in range(len(utterances))]

    def _use_threads(self, count: int) -> None:
        """For what the calling thread computes from now on."""
        if self.device == "cpu" and torch.get_num_threads() != count:
            torch.set_num_threads(count)

    @torch.inference_mode()
    def _run(self, text_ids: list[list[int]], utterances: list[Utterance]) -> list[Audio]:
        if self.graphs is not None:
            rows = self.graphs.speak(self.collate(text_ids, utterances, "cpu"))
            return [Audio(_finite(samples), self.sample_rate) for samples in rows]
        waveforms, n_samples = self.model(self.collate(text_ids, utterances))
        return [
            Audio(_finite(waveform[:n].copy()), self.sample_rate)
            for waveform, n in zip(waveforms.cpu().numpy(), n_samples, strict=True)
        ]

    @torch.inference_mode()
    def _run_in_slices(self, batch: Batch, on_slice: OnSlice) -> list[Audio]:
        assert isinstance(self.model, Prepared)
        pieces: list[list[np.ndarray]] = [[] for _ in batch.steps]
        computing_s = audio_s = 0.0
        started = 0.0
        slices, is_hurried = self.model.slices(batch), None
        while True:
            try:
                row, samples = slices.send(is_hurried)
            except StopIteration:
                break
            piece = _finite(samples.cpu().numpy())
            if started:  # the first slice's time holds the whole way to the latent
                computing_s += time.perf_counter() - started
                audio_s += len(piece) / self.sample_rate
            pieces[row].append(piece)
            is_hurried = on_slice(row, piece)
            started = time.perf_counter()
        if audio_s:
            self.slices.heard(computing_s / audio_s)
        return [Audio(np.concatenate(own), self.sample_rate) for own in pieces]

    def slices_save_s(self, audio_s: float) -> float:
        """How much sooner a listener hears something when so much audio is made in slices."""
        return self.slices.save_s(audio_s)

    def check(self) -> None:
        """Speak something harmless; raises if that does not work."""
        self.synthesize([self._hello])

    @property
    def _hello(self) -> Utterance:
        return Utterance("Hello, this is me.", self.languages[0], self.voices[0], 2, 1.0, 0, 0)

    def warm_up(self) -> None:
        """Run once, so that the first user does not wait for memory and kernels to be set up."""
        self.check()
        self.synthesize([self._hello], lambda i, samples: None)
        if self.graphs is not None:
            self._warm_up_graphs(self.graphs)

    def _warm_up_graphs(self, graphs: Graphs) -> None:
        """Graphs for what a worker speaks most: first chunks alone and together, then long ones."""
        for words, rows in WARM_SHAPES:
            text = ("Some more words of ordinary length. " * words)[: 6 * words]
            row = Utterance(text, self.languages[0], self.voices[0], 2, 1.05, 0, 0)
            self.synthesize([row] * rows)
        while graphs.idle():
            pass

    def idle(self) -> bool:
        """Nobody waits: prepare for batches like those of late. True if there is more to do."""
        return self.graphs is not None and self.graphs.idle()

    def device_memory_bytes(self) -> int:
        """Memory taken on a CUDA device, graphs included; 0 elsewhere."""
        if not self.device.startswith("cuda"):
            return 0
        return int(torch.cuda.memory_reserved(self.device))

    def _check(self, utterance: Utterance) -> None:
        self._style(utterance.voice)
        if utterance.language not in self.languages:
            known = ", ".join(self.languages)
            raise UnknownLanguage(f"this model speaks {known}, not {utterance.language!r}")
        if utterance.steps < 1:
            raise ValueError(f"steps must be at least 1, got {utterance.steps}")
        if not 0 < utterance.speed < float("inf"):
            raise ValueError(f"speed must be above 0, got {utterance.speed}")
        if utterance.seed < 0 or utterance.index < 0:
            raise ValueError(
                f"seed and index must not be negative, got {utterance.seed}, {utterance.index}"
            )

    def _style(self, voice: str) -> Style:
        """Of a voice or a mixture of some. UnknownVoice where it is neither."""
        style = self._styles.get(voice) or self._mixed.get(voice)
        if style is None:
            try:
                style = mix(self._styles, shares(voice, self.voices))
            except UnknownVoice as error:
                raise UnknownVoice(f"voice {voice!r}: {error}") from None
            if len(self._mixed) >= KEPT_MIXTURES:
                self._mixed.clear()
            self._mixed[voice] = style
        return style

    def collate(
        self,
        text_ids: Sequence[list[int]],
        utterances: Sequence[Utterance],
        device: str | None = None,
    ) -> Batch:
        device = device or self.device
        lengths = [len(ids) for ids in text_ids]
        padded = [ids + [0] * (max(lengths) - len(ids)) for ids in text_ids]
        styles = [self._style(utterance.voice) for utterance in utterances]
        return Batch(
            text_ids=torch.tensor(padded, device=device),
            text_lengths=torch.tensor(lengths, device=device),
            style_ttl=torch.from_numpy(np.stack([s.ttl for s in styles])).to(device),
            style_dp=torch.from_numpy(np.stack([s.dp for s in styles])).to(device),
            speed=torch.tensor([u.speed for u in utterances], device=device),
            steps=[u.steps for u in utterances],
            seeds=[(u.seed, u.index) for u in utterances],
        )


class _Slicing:
    """Passes slices of some rows on, until nobody wants any or a pass was made without."""

    def __init__(self, rows: list[int], on_slice: OnSlice) -> None:
        self.rows, self.on_slice = rows, on_slice
        self.is_over = True

    def __call__(self, row: int, samples: np.ndarray) -> bool | None:
        is_hurried = self.on_slice(self.rows[row], samples)
        self.is_over = bool(is_hurried)
        return is_hurried


def _finite(samples: np.ndarray) -> np.ndarray:
    """The samples; in 16 bit they would be silence, and nobody would know."""
    if not np.isfinite(samples).all():
        raise FloatingPointError("the model's samples are not all finite; try another precision")
    return samples
