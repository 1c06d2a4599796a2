"""The prepared model on a GPU: a whole batch as two CUDA graphs, one of them for the durations.

A batch of one row is some two thousand operations of a few microseconds each, and telling the GPU
about them one by one takes longer than computing them. A CUDA graph is told once and replayed, but
has fixed shapes. So the packed rows of a batch are filled up to the next *shape* with rows that
nobody hears; where rows begin and end is computed on the device from their lengths, which are an
input like the rest. A shape that has no graph yet runs the same operations one by one, and gets its
graph later, when nobody waits (`Graphs.idle`).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from supertonic.model import Batch, Draw, draw_noise
from supertonic.prepared import Prepared
from supertonic.rows import Rows

# With more steps than that, what a graph saves is small beside what it takes to hold it.
MOST_STEPS = 8
# Shapes remembered that have no graph yet.
MOST_MISSED = 32
# Of the device's memory, what graphs may hold.
MEMORY_SHARE = 0.25
# Each holds thousands of operations, on the host too, whatever its tensors are.
MOST_GRAPHS = 256


def round_up(n: int) -> int:
    """The next of the sizes that lie 16 or at most an eighth apart."""
    step = max(16, 1 << max(0, n.bit_length() - 4))
    return -(-n // step) * step


@dataclass(frozen=True)
class Shape:
    """What is fixed in a graph about packed rows."""

    rows: int
    total: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Shape":
        """The smallest that these rows fit, with rows more for what is filled up: each of them has
        one position at least, and none is longer than the longest.
        """
        longest = 1 << max(5, (max(lengths) - 1).bit_length())
        rows = 1 << (len(lengths) - 1).bit_length()
        while True:
            more = rows + max(1, rows // 8) - len(lengths)
            total = round_up(sum(lengths) + more)
            if total - sum(lengths) <= more * longest:
                return cls(len(lengths) + more, total, longest)
            rows *= 2

    def fill(self, lengths: Sequence[int]) -> list[int]:
        """The lengths, and those of the rows that fill the shape."""
        n, rest = self.rows - len(lengths), self.total - sum(lengths)
        return [*lengths, *(rest * (i + 1) // n - rest * i // n for i in range(n))]


class DeviceRows(Rows):
    """Rows whose lengths only the device knows; the host knows their shape."""

    def __init__(self, lengths: Tensor, shape: Shape) -> None:
        super().__init__([0] * shape.rows, lengths.device)
        self.own, self.shape, self.n = lengths, shape, shape.total

    def times(self, factor: int) -> "DeviceRows":
        shape = self.shape
        larger = Shape(shape.rows, shape.total * factor, shape.longest * factor)
        return DeviceRows(self.own * factor, larger)

    @property
    def longest(self) -> int:
        return self.shape.longest

    @property
    def is_even(self) -> bool:
        return False

    @cached_property
    def starts(self) -> Tensor:
        return self.own.cumsum(0) - self.own

    @cached_property
    def row_of(self) -> Tensor:
        return self._row_of(self.own, self.n)

    @cached_property
    def _in_row(self) -> Tensor:
        """(N,) which position of its row each one is."""
        return self._count(self.n) - self.starts[self.row_of]

    def around(self, left: int, right: int) -> tuple[Tensor, Tensor | None]:
        if (left, right) not in self._around:
            more = self.own + left + right
            row = self._row_of(more, self.n + len(self) * (left + right))
            at = self._count(len(row)) - (more.cumsum(0) - more)[row] - left
            take = torch.minimum(at.clamp(min=0), self.own[row] - 1) + self.starts[row]
            keep = self._count(self.n) + self.row_of * (left + right)
            self._around[left, right] = take, keep
        return self._around[left, right]

    @cached_property
    def turn(self) -> Tensor:
        return (self._in_row.float() / self.own[self.row_of])[:, None]

    @cached_property
    def is_real(self) -> Tensor:
        return self._count(self.longest) < self.own[:, None]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        own = torch.minimum(self._count(self.longest), self.own[:, None] - 1)
        take = (own + self.starts[:, None]).flatten()
        return take, self._in_row + self.row_of * self.longest

    def _count(self, n: int) -> Tensor:
        return torch.arange(n, device=self.device)

    def _row_of(self, lengths: Tensor, n: int) -> Tensor:
        return torch.searchsorted(lengths.cumsum(0), self._count(n), right=True)


Inputs = dict[str, Tensor]


class Captured(Protocol):
    """Something that was told once and can be done again, with what its inputs hold by then."""

    output: Tensor
    n_bytes: int

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], Captured]


class CudaGraph:
    """`Captured` on a GPU. All graphs share the memory for what they compute on the way: `pool`."""

    def __init__(self, compute: Callable[[], Tensor], pool: Any, stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            compute()  # libraries get their workspaces outside of the graph
        torch.cuda.synchronize(stream.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            # Not sooner: what nobody uses has just been given back.
            before = torch.cuda.memory_reserved(stream.device)
            self.output = compute()
        own = self.output.numel() * self.output.element_size()
        self.n_bytes = max(own, torch.cuda.memory_reserved(stream.device) - before)

    def replay(self) -> None:
        self._graph.replay()


@dataclass
class Entry:
    inputs: Inputs
    captured: Captured


@dataclass
class Miss:
    """A shape that had no graph: what was computed for it, and how often."""

    compute: Callable[[Inputs], Tensor]
    inputs: Inputs
    count: int = 0


class GraphCache:
    """Which graphs are kept: the latest used, within limits; and which are missed."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.missed: OrderedDict[Hashable, Miss] = OrderedDict()
        self.refused: set[Hashable] = set()  # of these no graph could be made
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def get(self, key: Hashable) -> Entry | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def miss(self, key: Hashable, compute: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
        if key in self.refused:
            return
        missed = self.missed.setdefault(key, Miss(compute, inputs))
        missed.count += 1
        self.missed.move_to_end(key)
        while len(self.missed) > MOST_MISSED:
            self.missed.popitem(last=False)

    def take_most_missed(self) -> tuple[Hashable, Miss] | None:
        if not self.missed:
            return None
        key = max(self.missed, key=lambda key: self.missed[key].count)
        return key, self.missed.pop(key)

    def put(self, key: Hashable, entry: Entry) -> None:
        """Keep a graph, and let go of those that were not used for longest."""
        self._entries[key] = entry
        while len(self) > 1 and (len(self) > MOST_GRAPHS or self.n_bytes > self.limit_bytes):
            self._entries.popitem(last=False)

    @property
    def n_bytes(self) -> int:
        return sum(entry.captured.n_bytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


class Graphs:
    """Speaks batches with the prepared model, by graphs where there are any."""

    def __init__(self, model: Prepared, capture: Capture | None = None) -> None:
        self.model, self.device = model, model.form.device
        limit = 1 << 30
        if self.device.type == "cuda":
            limit = int(MEMORY_SHARE * torch.cuda.get_device_properties(self.device).total_memory)
        self.capture = capture or self._captured_on_gpu
        self.cache = GraphCache(limit)
        self._drawing = ThreadPoolExecutor(8, "noise")

    def speak(self, batch: Batch, draw: Draw = draw_noise) -> list[np.ndarray]:
        """Samples of each row. `batch` is on the CPU."""
        lengths = batch.text_lengths.tolist()
        texts = [ids[:n] for ids, n in zip(batch.text_ids, lengths, strict=True)]
        n_samples = self._durations(texts, batch)
        n_frames = [-(-n // self.model.config.samples_per_frame) for n in n_samples]
        frames, characters = Shape.of(n_frames), Shape.of(lengths)
        rows = max(frames.rows, characters.rows)
        frames, characters = (
            _with_rows(frames, n_frames, rows),
            _with_rows(characters, lengths, rows),
        )
        n_steps = max(batch.steps)
        steps = batch.steps + [1] * (rows - len(lengths))
        sizes = [[1 / own if step < own else 0.0 for own in steps] for step in range(n_steps)]
        inputs = {
            "characters": torch.tensor(characters.fill(lengths)),
            "frames": torch.tensor(frames.fill(n_frames)),
            "ids": _filled(torch.cat(texts), characters.total),
            "style": _filled(batch.style_ttl, rows).flatten(0, 1),
            "noise": self._noise(batch, n_frames, frames.total, draw),
            "times": self._times(steps, n_steps),
            "sizes": torch.tensor(sizes)[:, :, None],
        }

        def compute(given: Inputs) -> Tensor:
            return self._waveform(given, characters, frames, n_steps)

        key = ("waveform", characters, frames, n_steps)
        waveform = self._run(key, inputs, compute, keep=n_steps <= MOST_STEPS)
        return self._fetch(waveform, n_frames, n_samples)

    def idle(self) -> bool:
        """Nobody waits: make the graph that was missed most. True if there was one to make."""
        missed = self.cache.take_most_missed()
        if missed is None:
            return False
        try:
            self._make(*missed)
        except Exception:
            # Not again at every miss.
            self.cache.refused.add(missed[0])
            raise
        return True

    def _durations(self, texts: list[Tensor], batch: Batch) -> list[int]:
        ids = [self.model.duration_predictor.with_token(own) for own in texts]
        lengths = [len(own) for own in ids]
        shape = Shape.of(lengths)
        inputs = {
            "lengths": torch.tensor(shape.fill(lengths)),
            "ids": _filled(torch.cat(ids), shape.total),
            "style": _filled(batch.style_dp, shape.rows),
            "speed": _filled(batch.speed, shape.rows, 1.0),
        }

        def compute(given: Inputs) -> Tensor:
            rows = DeviceRows(given["lengths"], shape)
            seconds = self.model.duration_predictor(given["ids"], rows, given["style"])
            return self.model.n_samples(seconds.float(), given["speed"])

        n_samples = self._run(("durations", shape), inputs, compute)
        return [int(n) for n in n_samples[: len(texts)].tolist()]  # the one wait before the sound

    def _waveform(
        self, given: Inputs, characters_shape: Shape, frames_shape: Shape, n_steps: int
    ) -> Tensor:
        model = self.model
        characters = DeviceRows(given["characters"], characters_shape)
        frames = DeviceRows(given["frames"], frames_shape)
        text_emb = model.text_encoder(given["ids"], characters, given["style"])
        heard = model.vector_estimator.listen(text_emb, characters, given["style"], frames)
        latent = given["noise"]
        for step in range(n_steps):
            size = frames.spread(given["sizes"][step])
            latent = model.vector_estimator.step(frames, latent, heard, given["times"][step], size)
        return model.vocoder(latent, frames)

    def _run(
        self,
        key: Hashable,
        inputs: Inputs,
        compute: Callable[[Inputs], Tensor],
        keep: bool = True,
    ) -> Tensor:
        entry = self.cache.get(key) if keep else None
        if entry is None:
            if keep:
                self.cache.miss(key, compute, inputs)
            return compute({name: self._send(x) for name, x in inputs.items()})
        for name, tensor in inputs.items():
            entry.inputs[name].copy_(_pinned(tensor, self.device), non_blocking=True)
        entry.captured.replay()
        return entry.captured.output

    @cached_property
    def _pool(self) -> tuple[Any, torch.cuda.Stream]:
        """Memory and stream of all captures."""
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _captured_on_gpu(self, compute: Callable[[], Tensor]) -> Captured:
        return CudaGraph(compute, *self._pool)

    @torch.inference_mode()
    def _make(self, key: Hashable, missed: Miss) -> None:
        inputs = {name: self._send(tensor).clone() for name, tensor in missed.inputs.items()}
        self.cache.put(key, Entry(inputs, self.capture(lambda: missed.compute(inputs))))

    def _send(self, tensor: Tensor) -> Tensor:
        return _pinned(tensor, self.device).to(self.device, non_blocking=True)

    def _noise(self, batch: Batch, n_frames: list[int], total: int, draw: Draw) -> Tensor:
        """(N, 144), drawn by several threads: at sixty rows it would take longer than the rest."""
        channels = self.model.config.latent_dim
        noise = torch.zeros(total, channels, pin_memory=self.device.type == "cuda")
        parts = torch.split(noise[: sum(n_frames)], n_frames)

        def fill(row: int) -> None:
            drawn = draw(batch.seeds[row], (channels, n_frames[row]))
            parts[row].numpy()[:] = drawn.T

        list(self._drawing.map(fill, range(len(n_frames))))
        return noise

    def _times(self, steps: list[int], n_steps: int) -> Tensor:
        """(steps, rows, groups, width): what each group adds for the time, per row."""
        each: dict[int, Tensor] = {}
        for own in set(steps):
            times = [self.model.vector_estimator.time(min(s, own - 1), own) for s in range(n_steps)]
            each[own] = torch.stack(times)
        return torch.stack([each[own] for own in steps], dim=1)

    def _fetch(
        self, waveform: Tensor, n_frames: list[int], n_samples: list[int]
    ) -> list[np.ndarray]:
        per_frame = self.model.config.samples_per_frame
        length = sum(n_frames) * per_frame
        host = torch.empty(length, pin_memory=self.device.type == "cuda")
        host.copy_(waveform[:length], non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        rows = host.numpy()
        ends = np.cumsum(n_frames) * per_frame
        starts = ends - np.array(n_frames) * per_frame
        return [rows[start : start + n] for start, n in zip(starts, n_samples, strict=True)]


def _with_rows(shape: Shape, lengths: Sequence[int], rows: int) -> Shape:
    """The same with more rows, which may need more positions."""
    if shape.rows == rows:
        return shape
    return Shape(rows, round_up(sum(lengths) + rows - len(lengths)), shape.longest)


def _filled(tensor: Tensor, n: int, value: float = 0) -> Tensor:
    """With more rows of `value`, n in all."""
    filled = tensor.new_full((n, *tensor.shape[1:]), value)
    filled[: len(tensor)] = tensor
    return filled


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.is_cuda or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()
