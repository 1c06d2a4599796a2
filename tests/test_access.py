"""Who may do what, and what is said when the service cannot: no key, no worker, no Redis."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests
import websocket

from tasks.workers import WorkerRecord, WorkerRecords
from tests.stack import Stack, wait_for

ANNA, BERT, ADMIN = "anna-secret", "bert-secret", "admin-secret"
NO_JOB = "a" * 24

# A worker that says it lives and takes nothing: enough for the web to accept jobs.
IDLE = WorkerRecord(
    name="idle@test",
    device="cpu",
    precision="float32",
    model="tiny",
    is_builtin=True,
    description="",
    fingerprint="",
    sample_rate=44_100,
    voices=("M1",),
    languages=("en",),
    max_batch=32,
    max_wait_ms=5.0,
    started_at=0.0,
    waiting=0,
    batches=0,
    chunks=0,
    audio_s=0.0,
    busy_s=0.0,
    rate=0.0,
    throughput=0.0,
    length_ratio=1.0,
    queue_wait_s=0.0,
    batch_size=0.0,
    device_memory_bytes=0,
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis and a web with keys, and no worker."""
    stack = Stack(
        tmp_path_factory.mktemp("guarded"),
        SUPERTONIC_API_KEYS=f"{ANNA}, {BERT}",
        SUPERTONIC_ADMIN_KEY=ADMIN,
        SUPERTONIC_WEB_PROCESSES="1",
    )
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    yield stack
    stack.redis.close()
    stack.stop_all()


@pytest.fixture
def announced(guarded: Stack) -> Iterator[Stack]:
    """The same with a worker's record, for as long as the test takes."""
    guarded.announce(IDLE)
    wait_for(lambda: guarded.get("/").json()["workers"])
    yield guarded
    WorkerRecords(guarded.redis).leave(IDLE.name)
    wait_for(lambda: not guarded.get("/").json()["workers"])


def bearer(key: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def ask(stack: Stack, method: str, path: str, **options: object) -> requests.Response:
    body = {"text": "Hi."} if method == "POST" else None
    return stack.session.request(method, stack.url + path, json=body, timeout=30, **options)


def ask_unavailable(
    stack: Stack, within_s: float, method: str, path: str, **options: object
) -> requests.Response:
    """The answer 503, which nobody waits for: of three, so that the machine may take a break."""
    took_s = []
    for _ in range(3):
        started = time.monotonic()
        answer = ask(stack, method, path, **options)
        took_s.append(time.monotonic() - started)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
    assert min(took_s) < within_s
    return answer


CLOSED = [
    ("POST", "/synthesize"),
    ("POST", "/synthesize/stream"),
    ("POST", "/synthesize/long"),
    ("GET", "/jobs"),
    ("GET", f"/jobs/{NO_JOB}"),
    ("GET", f"/jobs/{NO_JOB}/audio"),
    ("GET", f"/jobs/{NO_JOB}/events"),
    ("DELETE", f"/jobs/{NO_JOB}"),
    ("GET", "/ws/synthesize"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_without_a_key_everything_that_costs_or_tells_is_refused(
    guarded: Stack, method: str, path: str
) -> None:
    wrong = [{}, bearer("wrong"), bearer(""), bearer(ANNA[:-1]), bearer(f"{ANNA},{BERT}")]
    wrong += [bearer(ADMIN), {"headers": {"Authorization": f"Basic {ANNA}"}}]
    for options in wrong:
        answer = ask(guarded, method, path, **options)
        assert answer.status_code == 401, options
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/", "/ui", "/livez", "/voices", "/metrics", "/static/style.css"])
def test_what_neither_costs_nor_tells_is_open(guarded: Stack, path: str) -> None:
    assert ask(guarded, "GET", path).status_code == 200


def test_a_key_may_come_in_any_of_three_ways(guarded: Stack) -> None:
    assert ask(guarded, "GET", "/jobs", **bearer(ANNA)).status_code == 200
    assert ask(guarded, "GET", "/jobs", headers={"X-API-Key": BERT}).status_code == 200
    assert ask(guarded, "GET", f"/jobs?api_key={ANNA}").status_code == 200


def test_a_path_that_only_begins_like_an_open_one_is_closed(guarded: Stack) -> None:
    for path in ("/voices/", "/livezz", "/metrics/x", "//jobs", "/static", "/UI"):
        assert ask(guarded, "GET", path).status_code == 401, path


def test_jobs_of_another_key_do_not_exist(announced: Stack) -> None:
    job = ask(announced, "POST", "/synthesize/long", **bearer(ANNA)).json()
    assert job["state"] == "queued"
    for path in job["links"].values():
        assert ask(announced, "GET", path, **bearer(BERT)).status_code == 404
    assert ask(announced, "DELETE", f"/jobs/{job['job_id']}", **bearer(BERT)).status_code == 404
    assert ask(announced, "GET", "/jobs", **bearer(BERT)).json()["jobs"] == []
    (mine,) = ask(announced, "GET", "/jobs", **bearer(ANNA)).json()["jobs"]
    assert (mine["job_id"], mine["state"]) == (job["job_id"], "queued")
    cancelled = ask(announced, "DELETE", f"/jobs/{job['job_id']}", **bearer(ANNA)).json()
    assert cancelled["state"] == "cancelled"


def test_keys_are_nowhere_in_redis(announced: Stack) -> None:
    """A job remembers whose it is by a fingerprint; who reads Redis learns no key."""
    job = ask(announced, "POST", "/synthesize/long", **bearer(ANNA)).json()
    stored = announced.redis.hgetall(f"supertonic:job:{job['job_id']}")
    assert stored[b"owner"] and ANNA.encode() not in b" ".join(stored.values())
    ask(announced, "DELETE", f"/jobs/{job['job_id']}", **bearer(ANNA))


def test_a_websocket_needs_a_key_too(announced: Stack) -> None:
    address = announced.url.replace("http", "ws") + "/ws/synthesize"
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(address, timeout=10)
    assert refused.value.status_code == 401
    connection = websocket.create_connection(f"{address}?api_key={ANNA}", timeout=10)
    connection.close()


def test_only_the_admin_changes_the_batch_limits(guarded: Stack) -> None:
    path = "/config/batch?max_batch_size=4"
    for options in ({}, bearer(ANNA), bearer("wrong")):
        answer = guarded.session.post(guarded.url + path, timeout=10, **options)
        assert answer.status_code == 403 and "admin key" in answer.json()["detail"]
    answer = guarded.session.post(guarded.url + path, timeout=10, **bearer(ADMIN))
    assert answer.status_code == 200
    assert guarded.redis.hgetall("supertonic:batch") == {b"max_batch": b"4"}


def test_without_an_admin_key_this_machine_is_admin_and_who_comes_by_a_proxy_is_not(
    stack: Stack,
) -> None:
    """A proxy on this machine has its address, whoever is behind it."""
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
        for value in ("203.0.113.7", "127.0.0.1", "for=127.0.0.1", "1.1 proxy", ""):
            for method, path in (
                ("POST", "/config/batch?max_batch_size=4"),
                ("GET", "/dead-letters"),
            ):
                answer = ask(stack, method, path, headers={name: value})
                assert answer.status_code == 403, (name, value, path)
                assert "only this machine" in answer.json()["detail"]
    assert not stack.redis.exists("supertonic:batch")
    assert stack.post("/config/batch?max_batch_size=4").status_code == 200
    assert stack.get("/dead-letters").status_code == 200


@pytest.mark.parametrize("route", ["/synthesize", "/synthesize/stream", "/synthesize/long"])
def test_without_a_worker_the_answer_comes_at_once(guarded: Stack, route: str) -> None:
    jobs = set(guarded.redis.keys("supertonic:job:*"))
    answer = ask_unavailable(guarded, 1, "POST", route, **bearer(ANNA))
    assert "make worker" in answer.json()["detail"]
    assert set(guarded.redis.keys("supertonic:job:*")) <= jobs, "nothing is left for later"


def test_readiness_needs_a_worker_and_liveness_does_not(guarded: Stack) -> None:
    assert guarded.get("/readyz").status_code == 503
    assert guarded.get("/livez").status_code == 200
    assert guarded.get("/").json()["status"] == "no worker"


def test_a_worker_without_the_voice_asked_for_is_no_help(announced: Stack) -> None:
    announced.announce(replace(IDLE, voices=("F1",)))
    wait_for(lambda: [v["id"] for v in announced.get("/voices").json()["voices"]] == ["F1"])
    answer = ask(announced, "POST", "/synthesize", **bearer(ANNA))
    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "field": "voice",
        "value": "M1",
        "detail": "must be one of F1",
    }


def test_the_web_starts_without_redis_and_recovers_each_time_it_comes(stack: Stack) -> None:
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    assert stack.get("/ui").status_code == 200
    for _ in range(2):
        for method, path in (("POST", "/synthesize/long"), ("GET", "/readyz"), ("GET", "/jobs")):
            assert "Redis" in ask_unavailable(stack, 3, method, path).json()["detail"]
        stack.start_redis()
        stack.announce(IDLE)
        wait_for(lambda: ask(stack, "POST", "/synthesize/long").status_code == 202)
        stack.kill("redis")
    stack.redis.close()
