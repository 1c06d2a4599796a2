"""From a directory of files and a device to `synthesize(utterances)`.

The engine knows text, voices and devices; the model below it knows only tensors. What a caller
gets for an utterance depends on that utterance alone, never on what else was in the list.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from supertonic.config import ModelConfig
from supertonic.download import WEIGHTS
from supertonic.errors import ConfigError, UnknownLanguage, UnknownVoice, WeightsError
from supertonic.graphs import Graphs
from supertonic.model import Batch, Supertonic
from supertonic.prepared import (
    FIRST_SLICE,
    Prepared,
    check_precision,
    has_fast_bfloat16,
    prepare,
)
from supertonic.text import MAX_IDS, VOCABULARY, count_ids, encode, split_text
from supertonic.voices import Style, load_styles, mix, shares
from supertonic.weights import load_weights

BUILTIN = Path(__file__).parent / "builtin"
BUILTIN_DESCRIPTION = (
    "Small built-in voice: intelligible, monotone, made by this project from synthetic speech. "
    "Install the Supertonic 2 weights for natural speech."
)
# Words and rows of the batches for which a GPU has graphs from the start.
WARM_SHAPES = [(5, 1), (7, 1), (20, 1), (5, 4), (5, 16), (20, 8), (40, 8), (20, 32)]

KEPT_MIXTURES = 100  # some 50 KB each


@dataclass(frozen=True)
class Utterance:
    text: str
    language: str
    voice: str  # or a mixture, such as M1(2)+F3
    steps: int
    speed: float
    seed: int
    index: int  # which chunk of its request; with the seed it decides the noise


@dataclass(frozen=True, eq=False)
class Audio:
    samples: np.ndarray  # (N,) float32, as the model made them
    sample_rate: int


OnSlice = Callable[[int, np.ndarray], bool | None]  # true: the rest in one piece, please


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
        does_share = precision == "float32" and not _is_small(model.config)
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


def joined(parts: Sequence[Audio]) -> Audio:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    samples = np.concatenate([part.samples for part in parts])
    return Audio(samples, parts[0].sample_rate)


def in_parts(utterance: Utterance, longest: int) -> list[Utterance]:
    """The utterance itself, or as many as its text needs: none has more than so many characters
    or, as Hangul has sooner, than the model takes ids.
    """
    if len(utterance.text) <= longest and count_ids(utterance.text) <= MAX_IDS:
        return [utterance]
    chunks = split_text(
        utterance.text, utterance.language, first_chars=longest, target_chars=longest
    )
    # Each part has its own noise; a request has fewer chunks than this.
    return [
        replace(utterance, text=chunk.text, index=utterance.index + (number << 32))
        for number, chunk in enumerate(chunks)
    ]


def plan_passes(sizes: Sequence[float], size_per_pass: float) -> list[list[int]]:
    """Which rows are computed together: similar sizes, as many as would make at most
    `size_per_pass` if all were like the largest of them. One above that gets a pass of its own.
    """
    passes: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row]):
        # Sorted, so this row is the largest so far.
        if passes and sizes[row] * (len(passes[-1]) + 1) <= size_per_pass:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def size_per_pass(config: ModelConfig, device: str) -> float:
    """How much goes through the model at once, in characters at speed 1.

    Measured, milliseconds per row of the prepared model on one core at 2 steps, for 1 / 2 / 4 / 8
    rows at a time: full size, 26 characters: 125 / 98 / 80 / 71; 110 characters: 380 / 373 / 347;
    built-in size, 26 characters, for 1 / 8 / 16 / 32: 9.2 / 1.9 / 1.5 / 1.3. Most is gained by
    some 256 characters in full size and 1,000 in a small one; smaller passes leave more of them
    for the other cores. A GPU takes everything the caller put together.
    """
    if device.startswith("cuda"):
        return float("inf")
    return 1000 if _is_small(config) else 256


def _is_small(config: ModelConfig) -> bool:
    return config.vocoder.width < 256


def usable_cores() -> int:
    """Physical cores this process may use. Two threads on one core share its multipliers."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return min(len(one_per_core()), _container_limit())


def one_per_core() -> list[int]:
    """Of each physical core that this process may use, one of the processors it is for Linux."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return list(cores.values())


def _container_limit() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return os.cpu_count() or 1


class _Unfilled(TorchFunctionMode):
    """Layers built in here get memory, but no random numbers: those come from a file.

    The meta device would do that too; what it imports takes a second and 70 MB.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_engine(
    model: str = "auto",
    model_dir: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    *,
    prepared: bool = True,
) -> Engine:
    """Load a model directory: `supertonic.safetensors`, `voice_styles/*.json`, maybe `config.json`.

    model: "supertonic-2" is what lies in `model_dir`; "tiny" is the built-in voice; "auto" is the
    first of the two that is there; anything else is a directory of its own.
    precision: of the matrix products; see `resolve_precision` for "auto". `prepared=False` runs
    the model as it is written, slower.
    """
    device = resolve_device(device)
    name, directory = resolve_directory(model, model_dir)
    config = load_config(directory)
    if precision == "auto":
        precision = resolve_precision(config, device) if prepared else "float32"
    check_precision(precision, device)
    if precision != "float32" and not prepared:
        raise ConfigError(f"precision {precision!r} needs the prepared model; unprepared: float32")
    # Meanwhile on another core, if there is one: it reads the same file.
    fingerprint = ThreadPoolExecutor(1).submit(_fingerprint, directory, config, precision)
    with _Unfilled():
        network = Supertonic(config)
    load_weights(network, directory / WEIGHTS)
    duration = config.duration_predictor
    styles = load_styles(
        directory / "voice_styles",
        (config.n_style, config.style_dim),
        (duration.n_style, duration.style_dim),
    )
    if device == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    if prepared:
        network = prepare(network, device, precision)
    is_builtin = directory == BUILTIN
    return Engine(
        network,
        styles,
        name=name,
        description=BUILTIN_DESCRIPTION if is_builtin else f"Supertonic weights in {directory}.",
        is_builtin=is_builtin,
        fingerprint=fingerprint.result(),
        device=device,
        precision=precision,
    )


def resolve_device(device: str) -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if known is None:
        raise ConfigError(f"device {device!r} is not one of auto, cpu, cuda, cuda:<number>")
    if device != "cpu" and int(known[1] or 0) >= count:
        there = ", ".join(f"cuda:{number}" for number in range(count)) or "none"
        raise ConfigError(f"device {device!r} was asked for; CUDA devices here: {there}")
    return device


def resolve_precision(config: ModelConfig, device: str) -> str:
    """What "auto" means: bfloat16 where that is faster, else float32.

    Faster is where the device multiplies bfloat16 itself and multiplying is what takes the time,
    which is not so in a small model.
    """
    is_faster = has_fast_bfloat16(device) and not _is_small(config)
    return "bfloat16" if is_faster else "float32"


def resolve_directory(model: str, model_dir: str | Path | None) -> tuple[str, Path]:
    """The name of the model and the directory that holds it."""
    published = Path(model_dir) if model_dir else None
    if model == "auto":
        has_weights = published is not None and (published / WEIGHTS).exists()
        model = "supertonic-2" if has_weights else "tiny"
    if model == "tiny":
        return "tiny", BUILTIN
    if model == "supertonic-2" and published is not None:
        name, directory = model, published
    else:
        name, directory = Path(model).resolve().name, Path(model)
    if not (directory / WEIGHTS).exists():
        raise WeightsError(
            f"{directory}: no {WEIGHTS} there; `python -m supertonic download` fetches it"
        )
    return name, directory


def load_config(directory: Path) -> ModelConfig:
    path = directory / "config.json"
    config = ModelConfig.load(path) if path.exists() else ModelConfig()
    if config.vocabulary != len(VOCABULARY) + 1:
        raise ConfigError(
            f"{path}: vocabulary: expected {len(VOCABULARY) + 1}, got {config.vocabulary}"
        )
    return config


def _fingerprint(directory: Path, config: ModelConfig, precision: str) -> str:
    """Changes with anything that changes the sound."""
    digest = hashlib.blake2b(repr((config, precision)).encode(), digest_size=6)
    for path in [directory / WEIGHTS, *sorted((directory / "voice_styles").glob("*.json"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
