"""What a follower does when Redis or its news are not as they should be."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import redis

from app.bell import Bell, Line
from app.care import LOOK_S
from app.errors import Problem
from app.follow import Ended, Gap, Quiet, Spoken, follow
from app.jobs import Speech
from app.outcome import Cancelled, until_done
from tasks.events import ChunkResult, EventStore
from tasks.jobfiles import JobFiles
from tasks.measures import UNDERRUN, read, readings
from tasks.messages import State
from tasks.settings import Settings
from tasks.workers import WorkerRecords
from tests.examples import a_job, some_pieces
from tests.stack import wait_for
from tests.test_workers import RECORD


class Shaky(EventStore):
    """A store that cannot be reached the first time somebody asks for certain chunks."""

    shaky: set[int]

    def audios(self, job_id: str, indexes: Sequence[int], last_s: int | None = None) -> Any:
        if self.shaky & set(indexes):
            self.shaky -= set(indexes)
            raise redis.ConnectionError("a short outage")
        return super().audios(job_id, indexes, last_s)


@pytest.fixture
def bell(client: "redis.Redis") -> Iterator[Bell]:
    client.flushall()
    bell = Bell(client)
    yield bell
    bell.close()


def a_speech(
    store: EventStore, bell: Bell, folder: Path, settings: Settings | None = None
) -> Speech:
    records = WorkerRecords(store.redis)
    return Speech(settings or Settings(), store, records, bell, JobFiles(folder))


def test_short_outages_far_from_each_other_are_no_long_one(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    store, settings = Shaky(client, bell.name), Settings(patience_s=0.5)
    job, pieces = a_job("job", 4), some_pieces(4)
    store.create(job, pieces, 60)
    store.shaky = {1, 3}
    long = bytes(400_000)  # so that each is fetched by itself
    store.publish([ChunkResult("job", index, long, {}, 60) for index in range(4)])
    speech = a_speech(store, bell, tmp_path, settings)
    heard = []
    for item in follow(speech, job, pieces):
        if isinstance(item, Spoken):
            heard.append(item.index)
            time.sleep(0.4)  # a listener who takes his time
    assert heard == [0, 1, 2, 3] and item == Ended(State.DONE) and not store.shaky


def test_a_message_nobody_can_read_does_not_silence_the_bell(
    client: "redis.Redis", bell: Bell
) -> None:
    store = EventStore(client, bell.name)
    store.create(a_job("job", 1), some_pieces(1), 60)
    store.events("job")  # from now on this process is told
    with bell.listen("job") as line:
        wait_for(lambda: client.publish(bell.name, b"not json") > 0)
        store.publish([ChunkResult("job", 0, b"\1\0" * 10, {}, 60)])
        assert "audio" in _types(line)


def test_what_is_said_while_the_bell_connects_anew_is_heard(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    """The client connects anew by itself and tells nobody: whatever comes next would hide it."""
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 4), some_pieces(4)
    store.create(job, pieces, 60)
    speech = a_speech(store, bell, tmp_path)

    def publish(index: int) -> None:
        store.publish([ChunkResult("job", index, b"\1\0" * 10, {}, 60)])

    def is_listening() -> bool:
        return client.pubsub_numsub(bell.name)[0][1] == 1

    heard: list[int] = []
    give_up_at = time.monotonic() + 60
    for item in follow(speech, job, pieces):
        assert time.monotonic() < give_up_at
        if isinstance(item, Quiet) and not heard and is_listening():
            publish(0)
        if isinstance(item, Spoken):
            heard.append(item.index)
            if item.index == 0:
                client.client_kill_filter(_type="pubsub")
                publish(1)
                wait_for(is_listening)
                publish(2)
            elif item.index == 2:
                publish(3)
    assert heard == [0, 1, 2, 3] and item == Ended(State.DONE)


def test_chunks_whose_sound_is_gone_when_the_job_is_done_are_gaps(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    """A listener who plays the first chunk for longer than the others are kept."""
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 3), some_pieces(3)
    store.create(job, pieces, 60)
    store.publish([ChunkResult("job", index, bytes(400_000), {}, 60) for index in range(2)])
    speech = a_speech(store, bell, tmp_path)
    items = follow(speech, job, pieces)
    first = next(items)
    store.publish([ChunkResult("job", 2, bytes(400_000), {}, 60)])
    store.drop_audio("job", [1, 2])
    rest = [item for item in items if not isinstance(item, Quiet)]
    assert isinstance(first, Spoken)
    assert rest == [Gap(1), Gap(2), Ended(State.DONE)]
    stored = store.job("job")
    assert stored is not None and (stored.state, stored.done) == (State.DONE, 3)


def test_the_silence_of_a_stream_that_stands_still_is_measured_whole(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 2), some_pieces(2)
    store.create(job, pieces, 60)
    speech = a_speech(store, bell, tmp_path)
    store.publish([ChunkResult("job", 0, bytes(10), {}, 60)])
    began, n_quiet = time.monotonic(), 0
    for item in follow(speech, job, pieces):
        n_quiet += isinstance(item, Quiet)
        if isinstance(item, Spoken) and item.index == 1:
            # The pause behind the first is none, and the machine may take a break beside it.
            at_most_s = time.monotonic() - began - 0.3
        elif n_quiet == 2:
            store.publish([ChunkResult("job", 1, bytes(10), {}, 60)])
            n_quiet = 0
    speech.meter.send(client)
    measured = readings(UNDERRUN, read(client)[0])[()]
    assert 2 * LOOK_S - 0.4 < measured.total <= at_most_s


def test_a_chunk_of_which_nothing_is_told_when_the_job_is_done_is_a_gap(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 3), some_pieces(3)
    store.create(job, pieces, 60)
    store.publish([ChunkResult("job", index, bytes(20), {}, 60) for index in range(3)])
    (lost,) = [event.entry_id for event in store.events("job") if event.index == 1]
    client.xdel("supertonic:events:job", lost)
    items = list(follow(a_speech(store, bell, tmp_path), job, pieces))
    told = [item for item in items if not isinstance(item, Quiet | Spoken)]
    assert told == [Gap(1), Ended(State.DONE)]
    assert [item.index for item in items if isinstance(item, Spoken)] == [0, 2]


def test_who_wants_all_of_a_job_is_told_which_chunk_is_no_longer_kept(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 2), some_pieces(2)
    store.create(job, pieces, 60)
    store.publish([ChunkResult("job", index, bytes(20), {}, 60) for index in range(2)])
    store.drop_audio("job", [1])
    items = until_done(a_speech(store, bell, tmp_path), job, pieces)
    assert isinstance(next(items), Spoken)
    with pytest.raises(Problem, match=r"The audio of chunk 1 is no longer kept\.") as raised:
        list(items)
    assert (raised.value.status, raised.value.extra) == (500, {"job_id": "job"})


@pytest.mark.parametrize(
    ("state", "status", "detail"),
    [(State.CANCELLED, 409, "The job was cancelled."), (State.FAILED, 500, "the engine broke")],
)
def test_who_wants_all_of_a_job_is_told_that_it_ended_before(
    client: "redis.Redis", bell: Bell, tmp_path: Path, state: State, status: int, detail: str
) -> None:
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 2), some_pieces(2)
    store.create(job, pieces, 60)
    store.end("job", state, "the engine broke" if state is State.FAILED else "")
    with pytest.raises(Problem) as raised:
        list(until_done(a_speech(store, bell, tmp_path), job, pieces))
    assert (raised.value.status, raised.value.detail) == (status, detail)
    assert isinstance(raised.value, Cancelled) is (state is State.CANCELLED)


@pytest.mark.parametrize("with_audio", [True, False])
def test_who_claims_more_than_a_chunk_has_hears_all_of_it(
    client: "redis.Redis", bell: Bell, tmp_path: Path, with_audio: bool
) -> None:
    """He asks before the chunk is there, so that nobody can tell him."""
    store = EventStore(client, bell.name)
    job, pieces = replace(a_job("job", 2), slices=True), some_pieces(2)
    store.create(job, pieces, 60)
    items = follow(
        a_speech(store, bell, tmp_path), job, pieces, start=10**12, with_audio=with_audio
    )
    assert next(items) == Quiet()
    store.publish([ChunkResult("job", index, b"\1\0" * 10, {}, 60) for index in range(2)])
    heard = [item for item in items if isinstance(item, Spoken)]
    n_samples = 10 + round(0.3 * job.sample_rate)
    assert [(s.index, s.start, s.n_samples) for s in heard] == [(n, 0, n_samples) for n in (0, 1)]
    assert not with_audio or [len(s.pcm or b"") for s in heard] == [2 * n_samples] * 2


def _types(line: Line) -> list[str]:
    types: list[str] = []
    try:
        while "audio" not in types:
            types += [event.type for event in line.wait(5.0) or []]
    except Empty:
        pass
    return types


def test_a_stream_that_somebody_deleted_is_not_made_again(
    client: "redis.Redis", bell: Bell, tmp_path: Path
) -> None:
    store = EventStore(client, bell.name)
    job, pieces = a_job("job", 2), some_pieces(2)
    store.create(job, pieces, 60)
    speech = a_speech(store, bell, tmp_path)
    WorkerRecords(client).announce(RECORD)
    following = follow(speech, job, pieces)
    assert isinstance(next(following), Quiet)
    store.forget_job("job")
    (ending,) = [item for item in following if not isinstance(item, Quiet)]
    assert ending == Ended(State.FAILED, "the job was deleted", 410)
    assert store.job("job") is None
    client.delete("supertonic:gone:job")
    # Lost, and not deleted: it is made again.
    following = follow(speech, job, pieces)
    assert isinstance(next(following), Quiet)
    wait_for(lambda: isinstance(next(following), Quiet) and store.job("job"))
