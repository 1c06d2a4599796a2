"""What runs a batch as one CUDA graph, as far as that can be tested without a GPU: on the CPU a
graph is played by a function that computes again into the same memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from supertonic.characters import encode
from supertonic.graphs import (
    MOST_GRAPHS,
    MOST_MISSED,
    DeviceRows,
    Entry,
    GraphCache,
    Graphs,
    Shape,
    round_up,
)
from supertonic.loading import load_engine
from supertonic.model import Batch
from supertonic.prepared import Prepared
from supertonic.rows import Rows
from tests.test_engine import mixed_utterances

CPU = torch.device("cpu")


class Again:
    """Stands for a graph: computes from the same inputs into the same output."""

    n_bytes = 1

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute
        self.output = compute().clone()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.output.copy_(self.compute())


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tiny() -> Prepared:
    model = load_engine("tiny", device="cpu").model
    assert isinstance(model, Prepared)
    return model


def some_batch(n: int, longest: int = 60) -> Batch:
    utterances = mixed_utterances(max(2, n), longest=longest)[-n:]
    ids = [encode(utterance.text, utterance.language) for utterance in utterances]
    return load_engine("tiny", device="cpu").collate(ids, utterances)


def spoken_by_the_model(model: Prepared, batch: Batch) -> list[np.ndarray]:
    waveforms, n_samples = model(batch)
    return [row[:n].numpy() for row, n in zip(waveforms, n_samples, strict=True)]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return [len(row) for row in found] == [len(row) for row in expected] and all(
        np.abs(a - b).max() <= 1e-5 for a, b in zip(found, expected, strict=True)
    )


# Shapes


def test_sizes_lie_an_eighth_apart() -> None:
    assert [round_up(n) for n in (1, 16, 17, 129, 257, 1000)] == [16, 16, 32, 144, 288, 1024]
    assert all(n <= round_up(n) <= max(n + 15, n * 1.125) for n in range(1, 20_000))


@pytest.mark.parametrize("seed", range(50))
def test_a_shape_holds_its_rows_and_at_least_one_that_fills_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_shape(rng.integers(1, rng.integers(2, 1000), rng.integers(1, 65)).tolist())


@pytest.mark.parametrize("lengths", [[136] * 29 + [151], [235] * 61, [100] * 32, [1000] * 64, [1]])
def test_a_shape_holds_rows_that_nearly_fill_it(lengths: list[int]) -> None:
    check_shape(lengths)


def check_shape(lengths: list[int]) -> None:
    shape = Shape.of(lengths)
    filled = shape.fill(lengths)
    assert filled[: len(lengths)] == lengths
    assert len(filled) == shape.rows > len(lengths) and sum(filled) == shape.total
    assert min(filled) >= 1 and max(filled) <= shape.longest
    # Little is computed for nothing: an eighth, and one position per row.
    assert shape.total <= max(sum(lengths) + 32, 1.125 * (sum(lengths) + shape.rows))


def test_similar_batches_share_a_shape() -> None:
    assert Shape.of([100]) == Shape.of([98]) == Shape.of([97])
    assert Shape.of([100] * 7) == Shape.of([99, 101] * 3 + [98])


def test_rows_on_the_device_are_the_rows_the_host_would_make() -> None:
    lengths = [5, 1, 32, 7, 11]
    shape = Shape(5, 56, 32)
    for mine, theirs in [
        (DeviceRows(torch.tensor(lengths), shape), Rows(lengths, CPU)),
        (DeviceRows(torch.tensor(lengths), shape).times(6), Rows(lengths, CPU).times(6)),
    ]:
        for reach in [(2, 2), (16, 16), (6, 0)]:
            for a, b in zip(mine.around(*reach), theirs.around(*reach), strict=True):
                assert b is not None and torch.equal(a, b)
        for name in ("starts", "row_of", "turn", "is_real", "keys"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
        for a, b in zip(mine._places, theirs._places, strict=True):
            assert torch.equal(a, b)
        assert len(mine) == len(theirs) and mine.n == theirs.n and mine.longest == theirs.longest


# Speaking


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_filling_up_to_a_shape_changes_no_sample(tiny: Prepared, rows: int) -> None:
    batch = replace(some_batch(rows), steps=[1 + row % 3 for row in range(rows)])
    assert same(Graphs(tiny, Again).speak(batch), spoken_by_the_model(tiny, batch))


def test_a_graph_made_when_idle_serves_the_next_batches_of_its_shape(tiny: Prepared) -> None:
    made: list[Again] = []

    def capture(compute: Callable[[], Tensor]) -> Again:
        made.append(Again(compute))
        return made[-1]

    graphs = Graphs(tiny, capture)
    first = some_batch(4)
    before = graphs.speak(first)
    assert not made, "a first chunk does not wait for a graph"
    while graphs.idle():
        pass
    assert len(made) == 2  # durations and waveform
    assert same(graphs.speak(first), before)
    other = replace(first, seeds=[(9, 9)] * 4)
    assert same(graphs.speak(other), spoken_by_the_model(tiny, other))
    assert [graph.replays for graph in made] == [2, 2]


def test_a_graph_that_cannot_be_made_is_not_tried_again(tiny: Prepared) -> None:
    def capture(compute: Callable[[], Tensor]) -> Again:
        raise RuntimeError("out of memory")

    graphs, batch = Graphs(tiny, capture), some_batch(2)
    for _ in range(2):
        assert same(graphs.speak(batch), spoken_by_the_model(tiny, batch))
        for missed in list(graphs.cache.missed):
            with pytest.raises(RuntimeError, match="out of memory"):
                graphs.idle()
            assert missed not in graphs.cache.missed
    assert len(graphs.cache.refused) == 2


def test_many_steps_run_without_a_graph(tiny: Prepared) -> None:
    graphs = Graphs(tiny, Again)
    batch = replace(some_batch(1), steps=[20])
    assert same(graphs.speak(batch), spoken_by_the_model(tiny, batch))
    assert [key[0] for key in graphs.cache.missed] == ["durations"]


# Keeping


def entry(n_bytes: int) -> Entry:
    again = Again(lambda: torch.zeros(1))
    again.n_bytes = n_bytes
    return Entry({}, again)


def test_the_graphs_not_used_for_longest_go_when_the_memory_is_spent() -> None:
    cache = GraphCache(limit_bytes=100)
    cache.put("a", entry(40))
    cache.put("b", entry(40))
    assert cache.get("a") is not None
    cache.put("c", entry(40))
    assert cache.get("b") is None and cache.get("a") is not None and cache.get("c") is not None
    assert cache.n_bytes == 80
    cache.put("d", entry(500))
    assert len(cache) == 1 and cache.get("d") is not None


def test_there_are_never_more_graphs_than_so_many() -> None:
    cache = GraphCache(limit_bytes=10**9)
    for key in range(MOST_GRAPHS + 5):
        cache.put(key, entry(1))
    assert len(cache) == MOST_GRAPHS and cache.get(4) is None and cache.get(5) is not None


def test_what_is_missed_most_is_made_first_and_little_is_remembered() -> None:
    cache = GraphCache(limit_bytes=100)
    for key in "abbcab":
        cache.miss(key, lambda inputs: torch.zeros(1), {})
    taken = cache.take_most_missed()
    assert taken is not None and taken[0] == "b" and taken[1].count == 3
    for key in range(1000):
        cache.miss(key, lambda inputs: torch.zeros(1), {})
    assert len(cache.missed) == MOST_MISSED
    while cache.take_most_missed():
        pass
    assert not cache.missed


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_on_a_gpu_speak_like_the_model() -> None:
    engine = load_engine("tiny", device="cuda", precision="float32")
    said = mixed_utterances(6, languages=("en",))
    alone = [load_engine("tiny", device="cpu").synthesize([u])[0] for u in said]
    for _ in range(3):
        for a, b in zip(engine.synthesize(said), alone, strict=True):
            assert len(a.samples) == len(b.samples)
            assert np.abs(a.samples - b.samples).max() <= 1e-3
        while engine.idle():
            pass
    assert engine.graphs is not None and len(engine.graphs.cache) >= 2
