"""Whatever somebody puts into the queues, workers live, others are served, nothing loops."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.celery import ADVANCE, SYNTHESIZE, app
from tasks.dead_letters import DEAD_LETTERS, letters
from tasks.envelopes import envelopes
from tests.examples import a_chunk
from tests.stack import Stack, wait_for

QUEUES = ("high", "normal", "low", "files")
# Enough to be sure that nothing breaks, few enough to be quick: they go through a real worker.
EXAMPLES = 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("refusals"), NULL_BYTES="2000")
    try:
        stack.start_redis()
        stack.start_web()
        stack.start_worker(app="benchmarks.null_worker")
        stack.start_files()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop_all()


@pytest.fixture(autouse=True)
def alive(service: Stack) -> Iterator[None]:
    """After each test nothing is left behind, and the same workers serve the next requests."""
    service.redis.delete(DEAD_LETTERS)
    yield
    settled(service)
    assert are_alive(service)
    body = {"text": "Still here."}
    assert service.post("/synthesize", body).status_code == 200
    assert service.post("/synthesize/long?wait=true", body).status_code == 200


def are_alive(service: Stack) -> bool:
    return all(service.processes[name].poll() is None for name in ("worker", "files"))


def settled(service: Stack) -> None:
    def is_empty() -> bool:
        lengths = [service.redis.llen(queue) for queue in QUEUES]
        return not any(lengths) and service.redis.hlen("unacked") == 0

    wait_for(is_empty, 20, "all messages are done with")


def envelope(**chunk: Any) -> dict[str, Any]:
    """A good message as JSON, for a job that nobody knows."""
    ((_, text),) = envelopes(app, SYNTHESIZE, [a_chunk("nobody")], 86_400.0)
    message: dict[str, Any] = json.loads(text)
    if chunk:
        body = json.loads(base64.b64decode(message["body"]))
        body[0][0] |= chunk
        message["body"] = as_body(json.dumps(body))
    return message


def about_job(*args: Any, **headers: Any) -> dict[str, Any]:
    """A message for the files worker, good with the id of a job."""
    message = envelope() | {"body": as_body(json.dumps([args, {}, {}]))}
    message["properties"]["delivery_info"]["routing_key"] = "files"
    return message | {"headers": message["headers"] | {"task": ADVANCE} | headers}


def as_body(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def with_headers(**headers: Any) -> dict[str, Any]:
    message = envelope()
    return message | {"headers": message["headers"] | headers}


BAD: dict[str, Any] = {
    "broken JSON": '{"body": "W1",',
    "not an object": [1, 2, 3],
    "no headers": envelope() | {"headers": None},
    "another content type": envelope() | {"content-type": "application/x-python-serialize"},
    "an unknown content type": envelope() | {"content-type": "text/of/some/sort"},
    "an unknown task": with_headers(task="tasks.format_disk"),
    "a task that is a list": with_headers(task=["a"]),
    "no id": envelope() | {"headers": {"task": SYNTHESIZE}},
    "a strange expiry": with_headers(expires="tomorrow"),
    "a body that is no JSON": envelope() | {"body": as_body("{")},
    "a body of another shape": envelope() | {"body": as_body("[1]")},
    "no chunk": envelope() | {"body": as_body("[[], {}, {}]")},
    "a chunk without fields": envelope() | {"body": as_body("[[{}], {}, {}]")},
    "a field too many": envelope(colour="red"),
    "a huge text": envelope(text="a" * 5_000_000),
    "a huge number": envelope(seed=10**400),
    "NaN": envelope(seconds=float("nan")),
    "deep nesting": '{"a":' * 100_000,
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_becomes_a_dead_letter(service: Stack, what: str) -> None:
    message = BAD[what]
    service.redis.lpush("high", message if isinstance(message, str) else json.dumps(message))
    wait_for(lambda: service.redis.llen(DEAD_LETTERS) == 1, 10, "a dead letter")
    (letter,) = letters(service.redis)
    assert letter["queue"] == "high" and letter["reason"] and letter["at"] > 1.7e9
    assert len(json.dumps(letter)) < 30_000


BAD_FOR_FILES: dict[str, Any] = {
    "broken JSON": '{"body": "W1",',
    "no headers": about_job("nobody") | {"headers": None},
    "pickled": about_job("nobody") | {"content-type": "application/x-python-serialize"},
    "an unknown task": about_job("nobody", task="tasks.format_disk"),
    "a chunk": about_job(a_chunk().to_json(), task=SYNTHESIZE),
    "no id": about_job("nobody") | {"headers": {"task": ADVANCE}},
    "a strange time": about_job("nobody", eta="tomorrow"),
    "a strange expiry": about_job("nobody", expires="tomorrow"),
    "an expiry that is a list": about_job("nobody", expires=[1]),
    "retries that are a text": about_job("nobody", retries="many"),
    "a body that is no JSON": about_job() | {"body": as_body("{")},
    "a body of an unknown type": about_job({"__type__": "engine", "__value__": 1}),
    "arguments that are no list": about_job() | {"body": as_body('["nobody", {}, {}]')},
    "named arguments": about_job() | {"body": as_body('[["nobody"], {"job_id": "a"}, {}]')},
    "a task that follows": about_job() | {"body": as_body('[["nobody"], {}, {"chain": [1]}]')},
    "no job": about_job(),
    "two jobs": about_job("nobody", "nobody"),
    "a number": about_job(5),
    "a path": about_job("../../nobody"),
}


@pytest.mark.parametrize("what", BAD_FOR_FILES)
def test_a_bad_message_for_the_files_worker_becomes_a_dead_letter(
    service: Stack, what: str
) -> None:
    message = BAD_FOR_FILES[what]
    service.redis.lpush("files", message if isinstance(message, str) else json.dumps(message))
    wait_for(lambda: service.redis.llen(DEAD_LETTERS) == 1, 10, "a dead letter")
    (letter,) = letters(service.redis)
    assert letter["queue"] == "files" and letter["reason"]


def test_a_good_message_for_the_files_worker_is_used(service: Stack) -> None:
    service.redis.lpush("files", json.dumps(about_job("nobody", shadow=[1], timelimit="never")))
    settled(service)
    assert service.redis.llen(DEAD_LETTERS) == 0


def test_dead_letters_are_bounded_and_counted(service: Stack) -> None:
    service.redis.lpush("low", *(["rubbish"] * 1100))
    settled(service)
    assert service.redis.llen(DEAD_LETTERS) == 1000
    assert 0 < service.redis.ttl(DEAD_LETTERS) <= 7 * 86400
    assert service.get("/metrics").json()["dead_letters"] == 1000
    shown = service.get("/dead-letters?limit=3").json()["dead_letters"]
    assert [letter["message"] for letter in shown] == ["rubbish"] * 3


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def edited(message: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(message))
    *way, last = path
    place = copy
    for name in way:
        place = place[name]
    place[last] = value
    return copy


PATHS = [
    *([name] for name in envelope()),
    *(["headers", name] for name in envelope()["headers"]),
    *(["properties", name] for name in envelope()["properties"]),
]
FIELDS = sorted(a_chunk().to_json())
mutants = (
    st.builds(lambda path, value: edited(envelope(), path, value), st.sampled_from(PATHS), values)
    | st.builds(lambda name, value: envelope(**{name: value}), st.sampled_from(FIELDS), values)
    | values
)
mutants_for_files = (
    st.builds(
        lambda path, value: edited(about_job("nobody"), path, value), st.sampled_from(PATHS), values
    )
    | st.builds(about_job, values)
    | st.builds(lambda body: about_job() | {"body": as_body(json.dumps(body))}, values)
)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@example(message=edited(envelope(), ["headers", "shadow"], [1]), queue="high", raw=None)
@given(
    message=mutants | mutants_for_files,
    queue=st.sampled_from(QUEUES),
    raw=st.none() | st.binary(max_size=60),
)
def test_no_mutation_of_a_message_stops_a_worker(
    service: Stack, message: Any, queue: str, raw: bytes | None
) -> None:
    service.redis.lpush(queue, json.dumps(message) if raw is None else raw)
    settled(service)
    assert are_alive(service)
