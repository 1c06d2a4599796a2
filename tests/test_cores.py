"""A worker speaks as many batches at once as its engine has cores; through real processes."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from benchmarks.bench_streams import history
from celeryconfig import worker_prefetch_multiplier
from tasks.consumer import STOP_PATIENCE_S
from tasks.events import EventStore
from tasks.throughput import Shares
from tests.stack import Stack, wait_for
from tests.test_refusals import envelope

TEXT = "Number {} is one chunk of some three seconds."
PACE = 10.0


@pytest.fixture
def cores(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """So many batches at once, each of which makes ten seconds of sound per second."""
    stack.env |= {"PACE": str(PACE), "AT_ONCE": str(request.param), "SUPERTONIC_MAX_BATCH": "1"}
    stack.env["SUPERTONIC_CACHE_MB"] = "0"
    stack.start_redis()
    stack.start_worker(app="tests.paced_worker")
    stack.start_web()
    stack.wait_ready()
    yield stack


def speak(stack: Stack, number: int) -> float:
    """The seconds that it took."""
    asked = time.monotonic()
    body = {"text": TEXT.format(number), "seed": number}
    answer = requests.post(f"{stack.url}/synthesize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - asked


@pytest.mark.parametrize("cores", [3], indirect=True)
def test_nobody_waits_for_a_batch_on_another_core(cores: Stack) -> None:
    """Whichever step of the worker is made first: its order changes from start to start. Of each
    start the quickest of three, for the machine may be busy.
    """

    def together(_: int) -> list[float]:
        with ThreadPoolExecutor(6) as pool:
            return sorted(pool.map(lambda number: speak(cores, number), range(1, 7)))

    for _ in range(3):
        alone_s = min(speak(cores, number) for number in (0, 7, 8))
        taken_s = [min(each) for each in zip(*map(together, range(3)), strict=True)]
        # Six on three cores: three at once, and then three.
        assert taken_s[2] < 1.6 * alone_s
        assert 1.4 * alone_s < taken_s[5] < 2.8 * alone_s
        cores.stop("worker")
        cores.start_worker(app="tests.paced_worker")
        cores.wait_ready()


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_a_second_chunk_leaves_the_machine_to_the_first(cores: Stack) -> None:
    """There is a core for it, but it is wanted six seconds later, pause included: so long that it
    would not be urgent either to a worker that was disturbed and thinks itself slow.
    """
    long = "takes a little longer to be heard than the first one does, but no more than that."
    text = f"Well, this is the first one of three paragraphs.\n\nThis {long}\n\nThat {long}"
    with cores.stream({"text": text, "pause_s": 3.0, "resumable": True}) as answer:
        job_id = answer.headers["X-Job-Id"]
        assert b"event: done" in answer.content
    chunks = history(EventStore(cores.redis), job_id)
    first, *later = sorted(chunks, key=lambda chunk: chunk.index)
    assert len(later) == 2
    took_s = first.published_at - first.begun_at
    assert took_s > 0.15
    begun_s = [chunk.begun_at - first.published_at for chunk in later]
    # Not beside the first one, and long before it is wanted.
    assert -0.1 * took_s < min(begun_s) < 2.0
    # Those two are not in each other's way: one is not urgent, but neither is the other.
    assert max(chunk.begun_at for chunk in later) < min(chunk.published_at for chunk in later)


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_a_worker_holds_so_many_chunks_for_each_core(cores: Stack) -> None:
    """The simulator counts with it."""
    messages = [
        json.dumps(envelope(job_id="nobody", index=1, count=2, due=1e11 + n, seconds=100.0))
        for n in range(3 * worker_prefetch_multiplier)
    ]
    cores.redis.lpush("normal", *messages)
    credit = 2 * worker_prefetch_multiplier
    wait_for(lambda: cores.redis.hlen("unacked") >= credit - 2)
    time.sleep(1.0)  # in which it could claim too many
    with cores.redis.pipeline() as at_once:
        n_held, n_left = at_once.hlen("unacked").llen("normal").execute()
    done = len(messages) - n_held - n_left
    assert abs(n_held - credit) <= 2 + done


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_a_chunk_for_the_far_future_stops_no_core(cores: Stack) -> None:
    for number in range(3):
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(speak, cores, number)
            # One of them comes while it is spoken, whenever that may be.
            while not first.done():
                message = envelope(job_id="nobody", index=1, count=2, due=1e11, seconds=1.0)
                cores.redis.lpush("normal", json.dumps(message))
                time.sleep(0.05)
            assert first.result() < 20
        wait_for(lambda: not cores.redis.hlen("unacked"), what="all chunks are done with")
    # A thread that ended without a word would be waited for.
    asked = time.monotonic()
    cores.stop("worker")
    assert time.monotonic() - asked < STOP_PATIENCE_S / 2


def test_batches_at_the_same_time_share_the_machine() -> None:
    shares = Shares()
    first = shares.begin(10.0)
    second = shares.begin(11.0)  # beside it from here
    assert shares.end(15.0, first) == 1.0 + 2.0
    assert shares.end(16.0, second) == 2.0 + 1.0
    third = shares.begin(90.0)  # what was idle belongs to nobody
    assert shares.end(92.0, third) == 2.0
