"""What one caller may take: requests per time, bytes, and time to send them."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests
import websocket

from app.limits import SpeechLimit
from app.slow import PRESSED_S, READ_S, ReadingWatch
from tasks.events import connect
from tasks.settings import SettingsError
from tests.stack import Stack, wait_for
from tests.test_access import IDLE, bearer

ANNA, BERT = "anna-secret", "bert-secret"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis, two web processes with keys and a limit, and a worker's record."""
    stack = Stack(
        tmp_path_factory.mktemp("limited"),
        SUPERTONIC_API_KEYS=f"{ANNA}, {BERT}",
        SUPERTONIC_RATE_LIMIT="4/minute",
        SUPERTONIC_WEB_PROCESSES="2",
        SUPERTONIC_WEB_THREADS="12",
    )
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    stack.announce(IDLE)
    yield stack
    stack.stop_all()


@pytest.fixture
def fresh(limited: Stack) -> Stack:
    for key in limited.redis.scan_iter("supertonic:rate*"):
        limited.redis.delete(key)
    return limited


def speak(stack: Stack, key: str, **body: Any) -> requests.Response:
    # A new connection each time, so that either process may get it.
    return requests.post(
        f"{stack.url}/synthesize/long", json={"text": "Hi."} | body, timeout=10, **bearer(key)
    )


# -- how often -------------------------------------------------------------------------------


def test_the_limit_holds_for_a_key_over_all_processes(fresh: Stack) -> None:
    began = time.monotonic()
    answers = [speak(fresh, ANNA) for _ in range(7)]
    took_s = time.monotonic() - began
    assert [answer.status_code for answer in answers] == [202] * 4 + [429] * 3
    left = [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers]
    assert left == [f'"speech";r={n}' for n in (3, 2, 1, 0, 0, 0, 0)]
    refused = answers[-1]
    assert refused.headers["RateLimit-Policy"] == '"speech";q=4;w=60'
    assert 60 - took_s <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["detail"] == "At most 4 requests for speech per minute."
    assert speak(fresh, BERT).status_code == 202, "the limit is each key's own"


def test_mistakes_count_and_looking_does_not(fresh: Stack) -> None:
    for _ in range(4):
        assert speak(fresh, ANNA, speed=99).status_code == 422
    assert speak(fresh, ANNA).status_code == 429
    for path in ("/jobs", "/voices", "/readyz"):
        answer = fresh.get(path, **bearer(ANNA))
        assert answer.status_code == 200 and "RateLimit" not in answer.headers
    assert requests.post(f"{fresh.url}/synthesize", timeout=10).status_code == 401


@pytest.mark.parametrize(
    "path", ["/synthesize", "/synthesize/stream", "/synthesize/long", "/v1/audio/speech"]
)
def test_every_way_to_ask_for_speech_counts(fresh: Stack, path: str) -> None:
    url, options = fresh.url + path, {"json": {}, "timeout": 10, **bearer(ANNA)}
    answers = [requests.post(url, **options) for _ in range(5)]
    # Mistakes in /v1 are a 400, as OpenAI's clients know them.
    mistake = 400 if path.startswith("/v1") else 422
    assert [answer.status_code for answer in answers] == [mistake] * 4 + [429]
    assert speak(fresh, ANNA).status_code == 429, "all ways together have one limit"


def test_texts_on_a_websocket_count_too(fresh: Stack) -> None:
    began = time.monotonic()
    assert speak(fresh, ANNA).status_code == 202
    address = fresh.url.replace("http", "ws") + f"/ws/synthesize?api_key={ANNA}"
    ws = websocket.create_connection(address, timeout=10)
    for _ in range(4):
        ws.send(json.dumps({"type": "speak", "text": "Hi."}))
    heard = [json.loads(ws.recv()) for _ in range(2)]
    ws.close()
    (refused,) = [each for each in heard if each["type"] == "error"]
    took_s = time.monotonic() - began
    assert refused["status"] == 429 and 60 - took_s <= refused["retry_after_seconds"] <= 60


def test_without_redis_the_limit_gives_no_answer_of_its_own(stack: Stack) -> None:
    stack.env["SUPERTONIC_RATE_LIMIT"] = "1/hour"
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    for _ in range(3):
        answer = stack.post("/synthesize", {"text": "Hi."})
        assert answer.status_code == 503 and "Redis" in answer.json()["detail"]
    stack.start_redis()
    stack.announce(IDLE)
    statuses = [stack.post("/synthesize/long", {"text": "Hi."}).status_code for _ in range(2)]
    assert statuses == [202, 429], "an address is who asks where there are no keys"


@pytest.mark.parametrize("rule", ["sixty", "60", "60/fortnight", "-1/minute", "1 minute"])
def test_a_rule_that_cannot_be_read_stops_the_start(rule: str) -> None:
    with pytest.raises(SettingsError, match="SUPERTONIC_RATE_LIMIT=.*such as 60/minute"):
        SpeechLimit(rule, connect("redis://127.0.0.1:1/0"))


def test_addresses_of_one_ipv6_network_are_one_caller(fresh: Stack) -> None:
    with connect(fresh.redis_url) as client:
        limit = SpeechLimit("2/minute; 100/hour", client)
        assert limit.count("2001:db8::1").remaining == 1  # type: ignore[union-attr]
        assert limit.count("2001:db8::ffff").remaining == 0  # type: ignore[union-attr]
        assert limit.count("2001:db8:0:1::1").remaining == 1  # type: ignore[union-attr]
        assert SpeechLimit("", client).count("2001:db8::1") is None


# -- how much --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "headers", "status", "says"),
    [
        (b'{"text": "a", "text": "b"}', {}, 400, "'text' stands in it twice"),
        (b'{"text": "a", "x": {"y": 1, "y": 2}}', {}, 400, "'y' stands in it twice"),
        (b'{"text": "a", "seed": ' + b"9" * 5000 + b"}", {}, 400, "not valid JSON"),
        (b'{"text": "a", "speed": 1e999}', {}, 422, "must be a number from"),
        (b'{"text": "a", "speed": NaN}', {}, 400, "NaN is not JSON"),
        (b"[" * 100_000, {}, 400, "not valid JSON"),
        (b"\x1f\x8b\x08\x00", {"Content-Encoding": "gzip"}, 415, "send the body as it is"),
        (b'{"text": "a", "api_key": "hush"}', {}, 422, "is not a known field"),
        (b'{"text": "?", "steps": 8.0}', {}, 422, "nothing to say"),
        (b" " * 1_000_001, {}, 413, "larger than 1000000 bytes"),
    ],
)
def test_tricks_with_json_are_refused(
    server: Stack, data: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    answer = requests.post(
        server.url + "/synthesize", data=data, headers=JSON | headers, timeout=10
    )
    assert answer.status_code == status and says in answer.json()["detail"]
    assert "hush" not in answer.text


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n",
    ],
    ids=["line", "header", "headers"],
)
def test_a_head_over_the_limits_is_refused(limited: Stack, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", limited.port), timeout=10) as sock:
        sock.sendall(head)
        with sock.makefile("rb") as reader:
            answer = reader.read()
    assert answer.split()[1] in (b"400", b"414", b"431")
    assert b"application/problem+json" in answer and b'"detail": "' in answer


# -- how slowly ------------------------------------------------------------------------------


def test_only_what_takes_too_long_is_closed_and_sooner_under_pressure() -> None:
    with ExitStack() as close:
        pairs = [socket.socketpair() for _ in range(6)]
        for pair in pairs:
            for sock in pair:
                close.enter_context(sock)
        reading = ReadingWatch()
        reading._threads = 8
        for ours, _ in pairs[:4]:
            reading.begin(ours)
        now = time.monotonic()
        assert reading.close_slow(now + READ_S - 1) == 0
        reading.end(pairs[0][0])
        reading.end(pairs[0][0])
        assert reading.close_slow(now + READ_S + 1) == 3
        assert [pair[1].recv(1) for pair in pairs[1:4]] == [b""] * 3
        pairs[0][0].sendall(b"still open")
        assert pairs[0][1].recv(100) == b"still open"

        reading._threads = 2
        for ours, _ in (pairs[0], pairs[4]):
            reading.begin(ours)
        assert reading.close_slow(time.monotonic() + PRESSED_S - 1) == 0
        assert reading.close_slow(time.monotonic() + PRESSED_S + 1) == 2


def test_who_sends_a_large_file_has_more_time() -> None:
    with ExitStack() as close:
        large, small = (socket.socketpair() for _ in range(2))
        for sock in (*large, *small):
            close.enter_context(sock)
        reading = ReadingWatch()
        reading._threads = 8
        reading.allow(large[0], 100.0)
        for ours in (large[0], small[0]):
            reading.begin(ours)
        reading.allow(large[0], 20.0)
        reading.allow(None, 20.0)
        now = time.monotonic()
        assert reading.close_slow(now + READ_S + 1) == 1
        assert reading.close_slow(now + READ_S + 19) == 0
        assert reading.close_slow(now + READ_S + 21) == 1


def test_clients_that_never_finish_do_not_keep_others_out(limited: Stack) -> None:
    """Each of 2 processes has 12 threads; 60 clients dribble heads and bodies into them."""
    heads = [b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b""]
    heads[1] = (
        b"POST /synthesize/long HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + ANNA.encode() + b"\r\nContent-Length: 5000\r\n\r\n{"
    )
    with ExitStack() as close:
        slow = []
        for number in range(60):
            sock = socket.create_connection(("127.0.0.1", limited.port), timeout=10)
            close.enter_context(sock)
            sock.sendall(heads[number % 2])
            slow.append(sock)
        # Before a single one of them would have been closed without pressure.
        assert requests.get(f"{limited.url}/livez", timeout=READ_S).status_code == 200


def test_open_streams_are_not_taken_for_slow_clients(stack: Stack) -> None:
    """Seven of twelve threads are busy, but with answering."""
    stack.env |= {"SUPERTONIC_WEB_THREADS": "12", "SUPERTONIC_WEB_PROCESSES": "1"}
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    stack.announce(IDLE)
    with ExitStack() as close:
        streams = [close.enter_context(stack.stream({"text": "Hi."})) for _ in range(7)]
        ends_at = time.monotonic() + PRESSED_S + 1.5
        for stream in streams:
            for line in stream.iter_lines():
                if time.monotonic() > ends_at and line == b": heartbeat":
                    break
            else:
                pytest.fail("a stream was closed")
