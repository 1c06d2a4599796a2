"""A first chunk that is heard while it is being decoded: every sample once, whatever happens."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import websocket

from app.follow import PART_SAMPLES
from tasks.events import ChunkResult, EventStore, connect
from tasks.messages import State
from tasks.slicing import WORTH_S, SlicePublisher, pays
from tests.examples import a_chunk, a_job, some_pieces
from tests.sse import Received, joined, read_events, samples_of
from tests.stack import Stack

TEXT = (
    "The first sentence of all is long enough for a few slices, which come one by one. "
    "The second is shorter. And here is a third one, which is of no importance at all."
)
SETTINGS = {"text": TEXT, "voice": "F1", "seed": 11}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service with a worker that always slices."""
    folder = tmp_path_factory.mktemp("slow")
    # Without the cache, which would have the same sound whole the second time.
    files = {"SLICING_MARK": str(folder / "mark"), "SLICING_HEARD": str(folder / "heard")}
    stack = Stack(folder, SUPERTONIC_CACHE_MB="0", **files)
    try:
        stack.start_redis()
        stack.start_worker(app="tests.slicing_worker")
        stack.start_web()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop_all()


def whole(stack: Stack, **settings: object) -> np.ndarray:
    answer = stack.post("/synthesize", SETTINGS | settings | {"output_format": "wav"})
    return samples_of(answer.content)


@contextmanager
def counting(stack: Stack) -> Iterator[Callable[[int], None]]:
    """Say how many slices have been heard; the worker makes the next one only then."""
    ears = stack.folder / "heard"

    def tell(count: int) -> None:
        ears.write_text(str(count))

    tell(0)
    try:
        yield tell
    finally:
        ears.unlink()


def stream(stack: Stack, **settings: object) -> list[Received]:
    events: list[Received] = []
    with counting(stack) as tell, stack.stream(SETTINGS | settings) as response:
        for event in read_events(response):
            events.append(event)
            tell(len(chunks(events)))
    return events


def chunks(events: list[Received]) -> list[Received]:
    return [event for event in events if event.event == "chunk"]


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for the last of the 16 bits, which is free."""
    return len(found) == len(expected) and bool((np.abs(found.astype(int) - expected) <= 1).all())


# The rule


def saving(seconds: float) -> SimpleNamespace:
    return SimpleNamespace(slices_save_s=lambda audio_s: seconds)


def test_slices_pay_for_a_first_chunk_that_is_due_and_whose_rest_takes_long() -> None:
    chunk = a_chunk(index=0, due=50.0, slices=True)
    assert pays([chunk], saving(WORTH_S), now=60.0, is_crowded=False)
    assert pays([chunk, chunk], saving(WORTH_S), now=60.0, is_crowded=False)
    assert not pays([chunk], saving(0.9 * WORTH_S), now=60.0, is_crowded=False)
    assert not pays([chunk] * 3, saving(1.0), now=60.0, is_crowded=False)
    assert not pays([chunk], saving(1.0), now=60.0, is_crowded=True)
    assert not pays([chunk], saving(1.0), now=40.0, is_crowded=False)


@pytest.mark.parametrize("changes", [{"index": 1}, {"slices": False}])
def test_slices_are_for_the_first_chunk_of_who_asked_for_them(changes: dict) -> None:
    chunk = a_chunk(**{"index": 0, "due": 0.0, "slices": True} | changes)
    assert not pays([chunk], saving(1.0), now=60.0, is_crowded=False)


def test_a_chunk_in_slices_comes_to_an_end_once_others_wait(slow: Stack) -> None:
    client = connect(slow.redis_url)
    waiting: list[int] = []
    store = EventStore(client)
    publisher = SlicePublisher(
        store, [a_chunk(slices=True)], 600, lambda chunk: None, lambda: bool(waiting)
    )
    assert publisher(0, np.zeros(10)) is False
    waiting.append(1)
    assert publisher(0, np.zeros(10)) is True
    client.close()


# The store


def test_a_slice_made_a_second_time_is_no_news(slow: Stack) -> None:
    client = connect(slow.redis_url)
    store = EventStore(client)
    store.create(a_job("slices", 1), some_pieces(1), 600)
    pcm = np.arange(100, dtype="<i2").tobytes()
    assert store.publish_slice("slices", 0, 0, pcm[:40], 600)
    assert not store.publish_slice("slices", 0, 0, pcm[:40], 600)
    # Another worker cuts elsewhere: only what reaches further counts.
    assert not store.publish_slice("slices", 0, 10, pcm[20:30], 600)
    assert store.publish_slice("slices", 0, 10, pcm[20:80], 600)
    # And a hole is never filled with silence.
    assert not store.publish_slice("slices", 0, 60, pcm[120:], 600)
    assert store.audio_after("slices", 0, 15) == pcm[30:80]
    assert [(e.type, e.n_samples) for e in store.events("slices")] == [("slice", 20), ("slice", 40)]
    job = store.job("slices")
    assert job is not None and job.state is State.RUNNING and job.done == 0
    assert store.publish([ChunkResult("slices", 0, pcm, {}, 600)]) == [True]
    assert store.audio("slices", 0) == pcm
    assert not store.publish_slice("slices", 0, 0, pcm, 600)
    client.close()


# The whole way


def test_a_chunk_in_slices_is_the_chunk(slow: Stack) -> None:
    events = stream(slow, slices=True)
    first = [event for event in chunks(events) if event.data["index"] == 0]
    assert len(first) >= 3
    assert [event.data["is_last_slice"] for event in first] == [False] * (len(first) - 1) + [True]
    start = 0
    for event in first:
        assert event.data["start_sample"] == start
        start += event.data["n_samples"]
    assert [event.id for event in first[:2]] == [
        f"0+{first[0].data['n_samples']}",
        f"0+{first[0].data['n_samples'] + first[1].data['n_samples']}",
    ]
    assert first[0].data["duration_seconds"] < 0.3
    assert all(event.data["is_last_slice"] for event in chunks(events)[len(first) :])
    assert same(joined(events), whole(slow))
    seconds = len(joined(events)) / events[0].data["sample_rate"]
    assert events[-1].data["duration_seconds"] == pytest.approx(seconds, abs=1e-3)


def test_who_does_not_ask_gets_whole_chunks(slow: Stack) -> None:
    events = stream(slow)
    assert [event.data["index"] for event in chunks(events)] == list(range(events[0].data["total"]))
    assert all("is_last_slice" not in event.data for event in chunks(events))


def test_a_stream_can_be_resumed_inside_a_chunk_after_each_slice(slow: Stack) -> None:
    events = stream(slow, slices=True, resumable=True)
    everything, heard = joined(events), 0
    assert sum("+" in event.id for event in events) >= 2
    for event in chunks(events):
        heard += event.data["n_samples"]
        headers = {"Last-Event-ID": event.id}
        answer = slow.get(f"/jobs/{events[0].data['job_id']}/events", headers=headers, stream=True)
        rest = list(read_events(answer))
        after = joined(rest) if chunks(rest) else everything[:0]
        assert same(after, everything[heard:]), event.id


def test_a_worker_that_dies_after_two_slices_costs_no_sample(slow: Stack) -> None:
    text = "A murder " + TEXT
    wanted = SETTINGS | {"text": text, "slices": True}
    with counting(slow) as tell, slow.stream(wanted) as response:
        events = []
        for event in read_events(response):
            events.append(event)
            tell(len(chunks(events)))
            if len(chunks(events)) == 2 and "worker2" not in slow.processes:
                slow.start_worker("worker2", app="tests.slicing_worker")
    assert (slow.folder / "mark").exists()
    starts = [event.data["start_sample"] for event in chunks(events) if event.data["index"] == 0]
    assert starts == sorted(set(starts)) and len(starts) >= 3
    assert events[-1].event == "done"
    assert same(joined(events), whole(slow, text=text))


def test_a_websocket_gets_slices_unless_it_refuses(slow: Stack) -> None:
    for wish, expected in [({}, True), ({"slices": False}, False)]:
        ws = websocket.create_connection(slow.url.replace("http", "ws") + "/ws/synthesize")
        sound, heads = b"", []
        with counting(slow) as tell:
            ws.send(json.dumps({"type": "speak"} | SETTINGS | wish))
            while (message := json.loads(ws.recv()))["type"] != "done":
                if message["type"] == "chunk":
                    heads.append(message)
                    frame = ws.recv()
                    assert len(frame) == 2 * message["n_samples"]
                    sound += frame
                    tell(len(heads))
        ws.close()
        assert (sum(head["index"] == 0 for head in heads) > 1) is expected
        assert message["samples_sent"] * 2 == len(sound)
        assert same(np.frombuffer(sound, "<i2"), whole(slow))


LONG = {"text": "This sentence is long and slow. " * 30, "speed": 0.5}


def test_no_slice_is_larger_than_clients_take(slow: Stack) -> None:
    """Also of chunks behind the first, which come whole from the worker."""
    got = chunks(stream(slow, **LONG, slices=True))
    assert len({event.data["index"] for event in got}) < len(got) - 5
    assert max(event.data["n_samples"] for event in got) == PART_SAMPLES
    assert max(len(event.data["audio_base64"]) for event in got) < 400_000
    for event in got:
        last = event.data["is_last_slice"]
        assert ("queue_time_ms" in event.data) is last
        seen = event.data["start_sample"] + event.data["n_samples"]
        index = event.data["index"]
        assert event.id == (str(index + 1) if last else f"{index}+{seen}")
    assert same(joined(got), whole(slow, **LONG))
    # A client that wants each chunk whole gets it whole.
    assert max(event.data["n_samples"] for event in chunks(stream(slow, **LONG))) > PART_SAMPLES


def test_no_frame_is_larger_than_clients_take(slow: Stack) -> None:
    ws = websocket.create_connection(f"{slow.url.replace('http', 'ws')}/ws/synthesize", timeout=60)
    ws.send(json.dumps({"type": "speak", **SETTINGS, **LONG}))
    frames: list[bytes] = []
    while (message := ws.recv()) and (isinstance(message, bytes) or '"done"' not in message):
        if isinstance(message, bytes):
            frames.append(message)
    ws.close()
    assert max(len(frame) for frame in frames) == 2 * PART_SAMPLES
    assert same(np.frombuffer(b"".join(frames), "<i2"), whole(slow, **LONG))
