"""What a worker's threads share; test_queue_faults.py has it in a worker."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.batching import BatchLimits
from tasks.messages import Kind
from tasks.pace import Pace
from tasks.waiting import Held, WaitingList
from tests.examples import waiting_chunk


def held(job: str, kind: Kind = Kind.STREAM, due_s: float = 0.0, **fields: str) -> Held:
    """A chunk that has just come and is due in so many seconds; its request is not needed here."""
    now = time.time()
    return Held(waiting_chunk(job, kind=kind, due=now + due_s, arrived=now, **fields), None)


def a_list(*chunks: Held, threads: int = 1, max_batch: int = 1) -> WaitingList:
    waiting = WaitingList(BatchLimits(max_batch, 1000.0, 0.0, Pace(batches_at_once=threads)))
    for chunk in chunks:
        waiting.add(chunk)
    return waiting


def jobs(batch: list[Held]) -> list[str]:
    return [one.item.chunk.job_id for one in batch]


@pytest.mark.parametrize(
    ("chunks", "is_crowded"),
    [
        ([], False),
        ([held("book", Kind.LONG, -60.0)], False),
        ([held("later", due_s=3600.0)], False),
        ([held("book", Kind.LONG, -60.0), held("now", due_s=-0.1)], True),
        ([held("now", Kind.FILE, -0.1)], True),
    ],
)
def test_only_listeners_who_need_sound_now_are_a_crowd(chunks: list, is_crowded: bool) -> None:
    """A long job that waits keeps nobody from slices."""
    assert a_list(*chunks).is_crowded() is is_crowded


def test_a_thread_is_asked_for_while_one_is_free() -> None:
    waiting = a_list(threads=2)
    assert [waiting.add(held(job)) for job in "abcd"] == [True, True, False, False]
    waiting.take_all()
    assert waiting.next_batch() == [], "nothing waits, and this thread leaves"
    assert [waiting.add(held(job)) for job in "ef"] == [True, False]


def test_many_threads_take_each_chunk_once_and_leave() -> None:
    names = [f"{number:03}" for number in range(200)]
    waiting = a_list(threads=8, max_batch=4)
    gate = threading.Barrier(8)

    def pull() -> list[str]:
        gate.wait(10)
        taken = []
        while len(taken) < len(names) and (batch := waiting.next_batch()):
            taken += jobs(batch)
            waiting.batch_ended()
        return taken

    for name in names:
        waiting.add(held(name))
    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(pull) for _ in range(8)]
        taken = [name for thread in threads for name in thread.result(30)]
    assert sorted(taken) == names
    assert waiting.threads_have_left(0.0) and not waiting.speaking


def test_a_batch_is_being_spoken_until_it_has_ended() -> None:
    waiting = a_list(held("one"), held("other"))
    assert jobs(waiting.next_batch()) == ["one"]
    assert [chunk.job_id for chunks in waiting.speaking.values() for chunk in chunks] == ["one"]
    assert [chunk.job_id for chunk in waiting.chunks()] == ["other"]
    assert not waiting.is_alone(), "the other goes before it is done"
    waiting.take_all()
    assert waiting.is_alone()
    waiting.batch_ended()
    assert not waiting.speaking


def test_a_job_that_is_over_leaves_what_others_may_want() -> None:
    waiting = a_list(held("over"), held("over", content="shared"), held("other"))
    assert jobs(waiting.drop("over")) == ["over"]
    assert [chunk.content for chunk in waiting.chunks()] == ["shared", ""]
    assert waiting.drop("unknown") == []


@pytest.fixture
def unwoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that nobody wakes does not look by itself."""
    monkeypatch.setattr("tasks.waiting.LOOK_S", 3600.0)


def test_what_is_not_urgent_goes_when_the_first_chunk_beside_it_is_done(unwoken: None) -> None:
    waiting = a_list(held("now"), threads=2)
    assert jobs(waiting.next_batch()) == ["now"]
    waiting.add(held("later", due_s=30.0, index=1))
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(waiting.next_batch)
        with pytest.raises(TimeoutError):
            beside.result(0.3)
        waiting.batch_ended()
        assert jobs(beside.result(10)) == ["later"]
        assert waiting.is_closed is False and len(waiting.speaking) == 1


def test_a_thread_with_another_beside_it_is_not_alone() -> None:
    waiting = a_list(held("one"), held("other"), threads=2)
    assert jobs(waiting.next_batch()) == ["one"]
    with ThreadPoolExecutor(1) as pool:
        assert jobs(pool.submit(waiting.next_batch).result(10)) == ["other"]
        assert not waiting.is_alone()
        pool.submit(waiting.batch_ended).result(10)
    assert waiting.is_alone()


def test_closing_sends_away_a_thread_that_waits_for_company(unwoken: None) -> None:
    waiting = a_list(held("later", due_s=3600.0))
    waiting.limits = BatchLimits(8, 1000.0, max_wait_s=3600.0)
    taken: list[list[Held]] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.next_batch()), daemon=True)
    thread.start()
    assert not waiting.threads_have_left(0.1), "it waits"
    waiting.close()
    thread.join(30)
    assert taken == [[]]
    assert waiting.threads_have_left(0.0)
    assert jobs(waiting.take_all()) == ["later"], "handed back by whoever closes"
