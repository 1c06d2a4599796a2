"""Records of workers, also of other versions than the one that reads them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import redis

from tasks.workers import WORKERS, WorkerRecord, WorkerRecords
from tests.stack import Stack, wait_for

RECORD = WorkerRecord(
    name="ours",
    device="cpu",
    precision="bfloat16",
    model="tiny",
    is_builtin=True,
    description="",
    fingerprint="f",
    sample_rate=22_050,
    voices=("M1",),
    languages=("en",),
    max_batch=8,
    max_wait_ms=5.0,
    started_at=1.0,
)


def announce(client: "redis.Redis", record: dict) -> None:
    client.set(f"supertonic:worker:{record['name']}", json.dumps(record))
    client.sadd(WORKERS, record["name"])


def test_a_record_is_read_as_it_was_written(client: "redis.Redis") -> None:
    client.flushall()
    record = replace(RECORD, waiting=3, rate=7.5, length_ratio=0.9)
    WorkerRecords(client).announce(record)
    assert WorkerRecords(client).living() == [record]


def test_a_worker_of_another_version_is_one_of_them(client: "redis.Redis") -> None:
    client.flushall()
    records = WorkerRecords(client)
    records.announce(RECORD)
    newer = asdict(RECORD) | {"name": "newer", "of_tomorrow": {"a": 1}}
    older = asdict(RECORD) | {"name": "older"}
    del older["length_ratio"], older["throughput"], older["device_memory_bytes"]
    announce(client, newer)
    announce(client, older)
    assert records.living() == [replace(RECORD, name=name) for name in ("newer", "older", "ours")]


def test_a_worker_that_does_not_say_what_it_speaks_hides_no_other(client: "redis.Redis") -> None:
    client.flushall()
    WorkerRecords(client).announce(RECORD)
    announce(client, {"name": "strange", "device": "cpu"})
    assert WorkerRecords(client).living() == [RECORD]


def test_beside_a_worker_of_another_version_the_web_serves(server: Stack) -> None:
    (ours,) = WorkerRecords(server.redis).living()
    announce(server.redis, asdict(ours) | {"name": "newer", "of_tomorrow": 1})
    try:
        wait_for(lambda: len(server.get("/").json()["workers"]) == 2, what="both are seen")
        assert server.get("/readyz").status_code == 200
        assert server.get("/voices").status_code == 200
        assert server.post("/synthesize", {"text": "Hello."}).status_code == 200
    finally:
        WorkerRecords(server.redis).leave("newer")


@contextmanager
def beside(server: Stack, **other: object) -> Iterator[None]:
    """Another worker, as far as the web can tell: both of its processes know of it."""
    (ours,) = WorkerRecords(server.redis).living()
    announce(server.redis, asdict(ours) | {"name": "other"} | other)

    def seen() -> set[bool]:
        answers = [server.get("/").json()["workers"] for _ in range(20)]
        return {"other" in [worker["name"] for worker in workers] for workers in answers}

    try:
        wait_for(lambda: seen() == {True}, what="both are seen")
        yield
    finally:
        WorkerRecords(server.redis).leave("other")
        wait_for(lambda: seen() == {False}, what="one is seen")


def test_only_what_all_workers_speak_is_offered(server: Stack) -> None:
    with beside(server, voices=["M1", "F3", "Anna"], languages=["en", "ko"]):
        offered = server.get("/voices").json()
        voices = [voice["id"] for voice in offered["voices"]]
        assert voices == ["M1", "F3"]
        assert [language["code"] for language in offered["languages"]] == ["en"]
        for voice in voices:
            asked = {"text": "Hello.", "voice": voice}
            assert server.post("/synthesize", asked).status_code == 200
        refused = server.post("/synthesize", {"text": "Hello.", "voice": "F1"})
        assert refused.status_code == 422
        assert "must be one of M1, F3, or a mixture" in refused.json()["detail"]


def test_workers_of_different_rates_are_told_apart_before_anybody_hears_them(
    server: Stack,
) -> None:
    with beside(server, model="big", sample_rate=44_100):
        refused = server.post("/synthesize", {"text": "Hello."})
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "5"
        assert "other (big) at 44100" in refused.json()["detail"]
    wait_for(lambda: server.post("/synthesize", {"text": "Hello."}).status_code == 200, 10)
