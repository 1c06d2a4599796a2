"""More is asked for than can be spoken, and the same by many: through real processes, with a worker
of a known pace.
"""

import base64
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests
import websocket

from benchmarks.bench_streams import history
from tasks.events import EventStore
from tasks.workers import WorkerRecord, WorkerRecords
from tests.exposition import read_metrics, value
from tests.sse import read_events
from tests.stack import Stack, Stalls, wait_for

# Seconds of sound per second that the worker makes.
PACE = 8.0
ANNA, BERT = "a-key-of-annas", "a-key-of-berts"
SENTENCE = "This is a sentence of about three or four seconds, no more. "


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose worker is no faster than eight listeners."""
    settings = {
        "PACE": str(PACE),
        "SUPERTONIC_MAX_WAIT_S": "5",
        "SUPERTONIC_MAX_LONG_WAIT_S": "60",
    }
    stack = Stack(tmp_path_factory.mktemp("paced"), **settings)
    try:
        stack.start_redis()
        stack.start_worker(app="tests.paced_worker")
        stack.start_files()
        stack.start_web()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop_all()


@dataclass
class Heard:
    """What one listener got: when each chunk came and how long it plays; and its refusals."""

    asked_at: float = field(default_factory=time.monotonic)
    chunks: list[tuple[float, float]] = field(default_factory=list)
    refusals: list[requests.Response] = field(default_factory=list)
    ending: str = ""

    def silence_s(self) -> float:
        """The longest wait inside the stream, played from its first chunk on without a buffer."""
        needed, silence = self.chunks[0][0], 0.0
        for at, seconds in self.chunks:
            silence = max(silence, at - needed)
            needed = max(needed, at) + seconds
        return silence


def listen(stack: Stack, text: str, patience_s: float = 0.0) -> Heard:
    """Ask once; or, being patient, as often as it takes, obeying Retry-After."""
    heard = Heard()
    while True:
        with stack.stream({"text": text}) as response:
            if response.status_code == 200:
                for event in read_events(response):
                    heard.ending = event.event
                    if event.event == "chunk":
                        heard.chunks.append((time.monotonic(), event.data["duration_seconds"]))
                return heard
            heard.refusals.append(response)
            assert response.content
        if time.monotonic() - heard.asked_at > patience_s:
            return heard
        time.sleep(int(response.headers["Retry-After"]))


def test_at_twice_the_load_what_was_admitted_is_gapless_and_the_rest_is_told_when_to_come(
    paced: Stack,
) -> None:
    """Open loop: arrivals do not wait for each other. Every fourth client obeys Retry-After."""
    rng = random.Random(4)
    texts = [SENTENCE * rng.randrange(1, 6) for _ in range(28)]
    found: list[Heard] = []
    threads = [
        threading.Thread(
            target=lambda text=text, patience_s=0.0 if number % 4 else 20.0: found.append(
                listen(paced, text, patience_s)
            )
        )
        for number, text in enumerate(texts)
    ]
    with Stalls() as stalls:
        for thread in threads:
            thread.start()
            # A sentence takes 4 s, a text 12 s on average.
            time.sleep(rng.expovariate(2 * PACE / 12))
        for thread in threads:
            thread.join(120)
    admitted = [heard for heard in found if heard.chunks]
    refused = [heard for heard in found if not heard.chunks]
    silences = sorted(heard.silence_s() for heard in admitted)
    print(len(admitted), len(refused), silences[-5:], stalls.worst_s)
    assert len(found) == len(texts)
    assert all(heard.ending == "done" for heard in admitted)
    # Not zero: the machine has other things to do too. Without admission it is many seconds.
    assert silences[-1] < 0.5 + stalls.worst_s
    assert len(admitted) >= 10 and len(refused) >= 5
    for heard in refused:
        assert_says_when(heard.refusals[-1])
    patient = [heard for heard in admitted if heard.refusals]
    assert patient, "somebody obeyed, came back, and was let in"


def assert_says_when(response: requests.Response) -> None:
    assert response.status_code == 429
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["reason"] in ("capacity", "max_wait")
    assert problem["retry_after_seconds"] == int(response.headers["Retry-After"]) >= 1
    assert f"Try again in {response.headers['Retry-After']} s." in problem["detail"]
    assert int(response.headers["X-Queue-Wait-Ms"]) == problem["queue_wait_ms"] >= 0


def test_every_way_in_is_closed_while_the_workers_are_taken_and_open_again_afterwards(
    paced: Stack,
) -> None:
    text = SENTENCE * 12
    with paced.stream({"text": text}) as first:
        assert first.status_code == 200 and int(first.headers["X-Queue-Wait-Ms"]) >= 0
        url = f"{paced.url}/synthesize/stream"
        others = [requests.post(url, json={"text": text}, stream=True) for _ in range(9)]
        assert 429 in {other.status_code for other in others}
        assert_says_when(paced.post("/synthesize", {"text": text}))
        assert_says_when(paced.post("/synthesize/stream", {"text": text}))
        book = paced.post("/synthesize/long", {"text": SENTENCE * 300})
        assert (book.status_code, book.json()["reason"]) == (429, "max_long_wait")
        assert not list((paced.data_dir / "jobs").glob("*")), "nothing of it is left on disk"
        address = f"ws://127.0.0.1:{paced.port}/ws/synthesize"
        connection = websocket.create_connection(address, timeout=30)
        connection.send(json.dumps({"type": "speak", "text": text}))
        answer = json.loads(connection.recv())
        assert (answer["type"], answer["status"], answer["reason"]) == ("error", 429, "capacity")
        assert answer["retry_after_seconds"] >= 1
        for listening in others:
            listening.close()
    wait_for(lambda: not paced.redis.exists("supertonic:queued"), 30, "the cancelled are gone")
    connection.send(json.dumps({"type": "speak", "text": "Hello."}))
    assert json.loads(connection.recv())["type"] == "accepted"
    connection.close()


# -- what is measured -----------------------------------------------------------------------


def figures(stack: Stack) -> dict[str, float]:
    """What was measured of listeners, all of it: a web that ends tells what it has not told."""
    assert stack.stop("web") == 0
    stack.start_web()
    stack.wait_ready()
    names = ("first_audio_seconds", "stream_underrun_seconds")
    parts = [f"{name}_{part}" for name in names for part in ("count", "sum")]
    families = read_metrics(stack.get("/metrics?format=prometheus").text)
    return {part: value(families, f"supertonic_{part}") for part in parts}


def test_the_first_sound_of_a_format_that_comes_at_the_end_is_at_the_end(paced: Stack) -> None:
    wait_for(lambda: not paced.redis.exists("supertonic:queued"), 30, "nothing waits")
    before, asked = figures(paced), time.monotonic()
    body = {"input": SENTENCE * 5, "response_format": "flac"}
    url = f"{paced.url}/v1/audio/speech"
    with requests.post(url, json=body, stream=True, timeout=60) as answer:
        assert next(answer.iter_content(4)) == b"fLaC"
        waited_s = time.monotonic() - asked
        for _ in answer.iter_content(None):
            pass
        store, job_id = EventStore(paced.redis), answer.headers["X-Job-Id"]
    job = store.job(job_id)
    assert job is not None
    made_s = max(chunk.published_at for chunk in history(store, job_id)) - job.created_at
    assert made_s > 1.5, "or this test says nothing"

    after = figures(paced)
    found = {name: after[name] - before[name] for name in before}
    assert found["first_audio_seconds_count"] == 1
    assert made_s - 0.1 < found["first_audio_seconds_sum"] < waited_s
    assert found["stream_underrun_seconds_count"] == 0, "what comes at once has no gaps"


def test_a_stream_counts_once_however_many_listen_to_it(paced: Stack) -> None:
    before = figures(paced)
    with paced.stream({"text": SENTENCE * 4, "resumable": True}) as response:
        url = f"{paced.url}/jobs/{response.headers['X-Job-Id']}/events"
        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(requests.get, url, timeout=60) for _ in range(3)]
            assert b"event: done" in response.content
        assert all(b"event: done" in other.result().content for other in others)
    after = figures(paced)
    for name in ("first_audio_seconds_count", "stream_underrun_seconds_count"):
        assert after[name] - before[name] == 1, name


# -- the limits of a key --------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with a worker so slow that what waits hardly changes from one request to the next,
    and only its keys have limits.
    """
    settings = {
        "PACE": "4",
        "SUPERTONIC_API_KEYS": f"{ANNA},{BERT}",
        "SUPERTONIC_KEY_QUEUE_S": "20",
        "SUPERTONIC_KEY_LONG_QUEUE_S": "60",
    }
    stack = Stack(tmp_path_factory.mktemp("keyed"), **settings)
    try:
        stack.start_redis()
        stack.start_worker(app="tests.paced_worker")
        stack.start_files()
        stack.start_web()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop_all()


def post(stack: Stack, key: str, path: str, n_sentences: int) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"}
    body = {"text": SENTENCE * n_sentences}
    return requests.post(stack.url + path, json=body, headers=headers, stream=True, timeout=60)


def account(stack: Stack) -> dict[str, float]:
    """Seconds of work that wait, by what the account sums them up for; and the workers' rate."""
    sums: dict[str, float] = {"first": 0.0, "later": 0.0, "long": 0.0}
    for name, ms in stack.redis.hgetall("supertonic:queued").items():
        sums[name.decode().partition(":")[0] + ("_of_key" if b":" in name else "")] = int(ms) / 1000
    (worker,) = WorkerRecords(stack.redis).living()
    return sums | {"rate": worker.throughput}


def told(refused: requests.Response) -> int:
    assert refused.status_code == 429
    assert refused.json()["reason"] == "key_queue"
    assert refused.json()["retry_after_seconds"] == int(refused.headers["Retry-After"])
    return int(refused.headers["Retry-After"])


def test_a_key_with_too_much_waiting_is_told_when_that_is_spoken(keyed: Stack) -> None:
    with keyed.held(), post(keyed, ANNA, "/synthesize/stream", 10) as first:
        assert first.status_code == 200, "more than the limit, but nothing else of hers waits"
        refused = post(keyed, ANNA, "/synthesize/stream", 1)
        waits = account(keyed)
        # Nobody else's waits, so of hers must go what is above 20 s, and room for a sentence.
        least_s = (waits["listener_of_key"] - 20) / waits["rate"]
        assert least_s > 3, "or this test says nothing"
        assert least_s < told(refused) < 1.2 * (least_s + (20 + 8) / waits["rate"]) + 2
        with post(keyed, BERT, "/synthesize/stream", 1) as other:
            assert other.status_code == 200
    wait_for(lambda: not keyed.redis.exists("supertonic:queued"), 30, "nothing waits")


def test_a_keys_long_jobs_have_a_limit_of_their_own(keyed: Stack) -> None:
    with keyed.held():
        jobs = [(ANNA, post(keyed, ANNA, "/synthesize/long", 14))]
        waits = account(keyed)
        alone = told(post(keyed, ANNA, "/synthesize/long", 14))
        excess_s = 2 * waits["long_of_key"] - 60
        assert 20 < excess_s < waits["long_of_key"]
        # What a chunk may take longer, and the spread.
        most = 1.2 * (excess_s + 0.3 + 8) + 2 * waits["rate"]
        assert 0.8 * excess_s < alone * waits["rate"] < most
        jobs.append((BERT, post(keyed, BERT, "/synthesize/long", 14)))
        assert [job.status_code for _, job in jobs] == [202, 202]
        shared = told(post(keyed, ANNA, "/synthesize/long", 14))
        assert shared > 1.3 * alone, "the other's job has its turns"
    for key, job in jobs:
        headers = {"Authorization": f"Bearer {key}"}
        requests.delete(f"{keyed.url}/jobs/{job.json()['job_id']}", headers=headers, timeout=10)


# -- equal requests -------------------------------------------------------------------------


def spoken(stack: Stack) -> int:
    return int(stack.redis.hget("supertonic:totals", "chunks") or 0)


def by_the_worker(stack: Stack) -> int:
    """What the worker has counted, once it has nothing to do: it tells twice a second."""
    records = WorkerRecords(stack.redis)

    def at_rest() -> WorkerRecord | None:
        # One that was written before this is of no use.
        stack.redis.delete("supertonic:worker:worker@test")
        (worker,) = wait_for(records.living)
        return worker if worker.waiting == worker.speaking == 0 else None

    return wait_for(at_rest).chunks


def together(n: int, call: Callable[[], requests.Response]) -> list[requests.Response]:
    with ThreadPoolExecutor(n) as pool:
        return [future.result(60) for future in [pool.submit(call) for _ in range(n)]]


def test_of_twenty_equal_requests_at_the_same_time_each_chunk_is_computed_once(
    paced: Stack,
) -> None:
    body = {"text": SENTENCE * 3, "seed": 7, "output_format": "wav"}
    before, worked = spoken(paced), by_the_worker(paced)
    answers = together(20, lambda: requests.post(f"{paced.url}/synthesize", json=body, timeout=60))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    n_chunks = 3
    assert spoken(paced) - before == n_chunks
    assert by_the_worker(paced) - worked == n_chunks, "the worker says the same"
    again = paced.post("/synthesize", body | {"output_format": "base64"}).json()
    assert base64.b64decode(again["audio_base64"]) == answers[0].content
    assert (again["batch_size"], again["queue_time_ms"], again["inference_time_ms"]) == (0, 0, 0)
    assert spoken(paced) - before == n_chunks
    with paced.stream(body) as response:
        events = list(read_events(response))
    assert [event.event for event in events] == ["accepted", "chunk", "chunk", "chunk", "done"]
    assert [event.data["cached"] for event in events[1:-1]] == [True] * 3
    assert spoken(paced) - before == n_chunks


def test_without_a_seed_equal_requests_are_different_speech(paced: Stack) -> None:
    before = spoken(paced)
    answers = together(3, lambda: requests.post(f"{paced.url}/synthesize", json={"text": "Hi."}))
    assert len({answer.json()["seed"] for answer in answers}) == 3
    assert spoken(paced) - before == 3


def test_when_the_worker_dies_in_the_middle_its_message_serves_all_that_wait(
    paced: Stack,
) -> None:
    body = {"text": SENTENCE * 4, "seed": 8, "output_format": "wav"}
    before = spoken(paced)
    with ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(requests.post, f"{paced.url}/synthesize", json=body, timeout=60)
            for _ in range(5)
        ]
        wait_for(lambda: spoken(paced) > before, 20, "the first chunk is published")
        paced.kill("worker")
        paced.start_worker(app="tests.paced_worker")
        answers = [future.result(60) for future in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert not paced.redis.keys("supertonic:flight:*")
