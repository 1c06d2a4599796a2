"""What clumsy and hostile clients send: each gets a problem that says what would have been right.

Every problem is checked for its form (RFC 9457), and after each test the service still speaks.
"""

import base64
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import websocket

from tests.stack import Stack

SPEECH_ROUTES = ("/synthesize", "/synthesize/stream", "/synthesize/long")
JSON = {"Content-Type": "application/json"}
HALF = "\ud800"  # half of a surrogate pair: JSON can say it, UTF-8 cannot

SPEED = "a number from 0.5 to 2.0"
STEPS = "a whole number from 1 to 50"
SEED = "a whole number from 0 to 4294967295"
PAUSE = "a number of seconds from 0 to 3"
KNOWN = "known are text, voice, language"

# field, value, what is allowed
BAD_VALUES: list[tuple[str, Any, str]] = [
    *(
        ("text", text, "nothing to say")
        for text in ("", " \n\t ", "😀🎉", "?!...", "\0\0", "\u200b")
    ),
    *(("text", value, "must be a string") for value in (None, 5, True, ["Hi"], {"en": "Hi"})),
    ("text", f"Hi {HALF}", "half of a surrogate pair"),
    *(("voice", value, "one of M1, M2") for value in ("M9", "m1", "", "../M1", HALF, "M" * 9000)),
    *(("voice", value, "GET /voices") for value in (None, 1, ["M1"])),
    *(("language", value, "must be one of en") for value in ("xx", "english", "", HALF)),
    ("language", None, "GET /voices"),
    *(("speed", value, SPEED) for value in (0.49, 2.01, 0, -1, "fast", "1.0", None, True, [1])),
    *(("steps", value, STEPS) for value in (0, 51, -1, 2.5, True, "5", None, 10**400)),
    *(("seed", value, SEED) for value in (-1, 2**32, 1.5, "7", True)),
    *(("pause_s", value, PAUSE) for value in (-0.1, 3.01, "1", None, True)),
    *(("output_format", value, '"base64" or "wav"') for value in ("mp3", "WAV", 5, None)),
    *((name, 1, KNOWN) for name in ("sped", "Text", "", "job_id", "__proto__")),
]

# body, status, what the answer says
BAD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "not valid JSON"),
    (b'{"text":', 400, "not valid JSON"),
    (b"{'text': 'hi'}", 400, "not valid JSON"),
    (b'{"text": "hi"} x', 400, "Extra data"),
    (b'{"text": "\xff\xfe"}', 400, "utf-8"),
    (b'{"text": "a\0b"}', 400, "control character"),
    (b'{"text": "hi", "speed": NaN}', 400, "NaN is not JSON"),
    (b'{"text": "hi", "speed": -Infinity}', 400, "-Infinity is not JSON"),
    (b'{"text": "hi", "steps": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
    (b'{"text": "hi", "speed": 1e999}', 422, SPEED),
    (b"[" * 100_000 + b"]" * 100_000, 400, "not valid JSON"),
    (b'{"text": ' * 50_000, 400, "not valid JSON"),
    (b'["hi"]', 422, "must be a JSON object, not list"),
    (b'"hi"', 422, "must be a JSON object, not str"),
    (b"null", 422, "must be a JSON object, not NoneType"),
    (b"{}", 422, "text: is required"),
    (b'{"text": "' + b"a" * 1_000_000 + b'"}', 413, "larger than 1000000 bytes"),
]


@pytest.fixture(autouse=True)
def alive(server: Stack) -> Iterator[None]:
    """Whatever a test sends, the next user is served."""
    yield
    answer = server.post("/synthesize", {"text": "Hi.", "steps": 1})
    assert answer.status_code == 200, answer.text


def short(value: object) -> str:
    return ascii(value)[:24]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def problem(response: requests.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text[:500]
    assert response.headers["Content-Type"] == "application/problem+json"
    body = json.loads(response.content, parse_constant=refuse_constant)
    assert body["status"] == status and body["title"] != "Error" and body["detail"]
    assert len(response.content) < 10_000, "an answer is never many times its question"
    return body


def is_echo(told: object, sent: object) -> bool:
    """Whether ``told`` is the value that was sent, whole or its beginning."""
    if sent is None or isinstance(sent, (bool, int, float)):
        return told == sent and type(told) is type(sent)
    text = sent if isinstance(sent, str) else json.dumps(sent)
    return str(told).rstrip("…") == text.replace(HALF, "?")[:80]


def send_raw(server: Stack, request: bytes) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(request)
        with sock.makefile("rb") as reader:
            answer = reader.read()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(
    ("field", "value", "allowed"), BAD_VALUES, ids=[f"{f}={short(v)}" for f, v, _ in BAD_VALUES]
)
def test_a_bad_value_is_named_with_its_field_and_what_is_allowed(
    server: Stack, field: str, value: Any, allowed: str
) -> None:
    for route in SPEECH_ROUTES:
        body = problem(server.post(route, {"text": "Hi.", field: value}), 422)
        (error,) = body["errors"]
        assert error["field"] == field
        assert is_echo(error["value"], value)
        assert allowed in error["detail"] and allowed in body["detail"]


@pytest.mark.parametrize(
    ("data", "status", "says"), BAD_BODIES, ids=[f"{s}-{d[:16]!r}" for d, s, _ in BAD_BODIES]
)
def test_a_body_that_cannot_be_read_says_why(
    server: Stack, data: bytes, status: int, says: str
) -> None:
    for route in SPEECH_ROUTES:
        answer = requests.post(server.url + route, data=data, headers=JSON, timeout=30)
        assert says in problem(answer, status)["detail"]


def test_every_mistake_in_a_request_is_told_at_once(server: Stack) -> None:
    body = problem(server.post("/synthesize", {"speed": 9, "steps": 0, "sped": 1}), 422)
    assert {error["field"] for error in body["errors"]} == {"text", "speed", "steps", "sped"}


def test_thousands_of_mistakes_get_a_short_answer(server: Stack) -> None:
    fields = {f"field{n}": n for n in range(10_000)}
    assert len(problem(server.post("/synthesize", fields), 422)["errors"]) == 20


def test_a_value_as_deep_as_json_can_be_read_is_still_only_a_mistake(server: Stack) -> None:
    """Between too deep to read and shallow enough to show there was once an unexpected error."""
    for depth in range(950, 1000):
        data = b'{"text": ' + b"[" * depth + b"]" * depth + b"}"
        answer = requests.post(server.url + "/synthesize", data=data, headers=JSON, timeout=30)
        problem(answer, 422 if answer.status_code == 422 else 400)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(server: Stack, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for route in (*SPEECH_ROUTES, "/config/batch"):
        if (route, kind) == ("/synthesize/long", "text/plain"):
            continue  # which takes texts
        answer = requests.post(server.url + route, data=b'{"text": "hi"}', headers=headers)
        detail = problem(answer, 415)["detail"]
        assert (kind or "none") in detail and "application/json" in detail


def test_a_chunked_body_is_limited_too(server: Stack) -> None:
    blocks = iter([b'{"text": "', *[b"a" * 100_000] * 11, b'"}'])
    answer = requests.post(server.url + "/synthesize", data=blocks, headers=JSON, timeout=30)
    assert "1000000 bytes" in problem(answer, 413)["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 99999999999\r\n", 413),
        (b"Content-Length: -5\r\n", 400),
        (b"Content-Length: many\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n", 400),
    ],
)
def test_a_false_length_is_refused(server: Stack, headers: bytes, status: int) -> None:
    head = b"POST /synthesize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    request = head + b"Content-Type: application/json\r\n" + headers + b"\r\nzz\r\n"
    assert send_raw(server, request)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/synthesize", {"POST", "OPTIONS"}),
        ("DELETE", "/synthesize/stream", {"POST", "OPTIONS"}),
        ("POST", "/jobs", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/jobs/" + "a" * 24, {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("FROB", "/voices", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    server: Stack, method: str, path: str, allowed: set[str]
) -> None:
    answer = requests.request(method, server.url + path)
    problem(answer, 405)
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/nope", "/voices/x", "/synthesize/"])
def test_an_unknown_route_is_a_problem_too(server: Stack, path: str) -> None:
    problem(server.get(path), 404)


def test_a_path_that_is_nearly_right_is_told_the_right_one(server: Stack) -> None:
    for method, path, meant in (
        ("POST", "/audio/speech", "/v1/audio/speech"),
        ("GET", "/models", "/v1/models"),
        ("POST", "/synthesize/", "/synthesize"),
        ("POST", "/v1/audio/speech/", "/v1/audio/speech"),
    ):
        answer = requests.request(method, server.url + path, json={"text": "Hi."})
        assert answer.status_code == 404
        said = answer.json().get("detail") or answer.json()["error"]["message"]
        assert said == f"There is nothing at {path}. Is {meant} meant?"
    nowhere = problem(server.get("/audio/speech"), 404)["detail"]
    assert nowhere == "There is nothing at /audio/speech."


@pytest.mark.parametrize("job_id", ["a" * 24, "A" * 24, "x", "²" * 24, "%00", "%ff", "a" * 3000])
def test_an_unknown_job_is_not_found_on_any_of_its_routes(server: Stack, job_id: str) -> None:
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/audio", f"/jobs/{job_id}/events"):
        assert "no job with this id" in problem(server.get(path), 404)["detail"]
    problem(server.delete(f"/jobs/{job_id}"), 404)


@pytest.mark.parametrize(
    "path",
    [
        *("/jobs/..", "/jobs/../../etc/passwd", "/jobs/%2e%2e/audio", "/jobs/..%2f..%2fx/audio"),
        *("/static/../api.py", "/static/%2e%2e/api.py", "/static/..%2fapi.py", "/ui/../static/"),
    ],
)
def test_a_path_leads_nowhere_but_down(server: Stack, path: str) -> None:
    """Sent raw, because a client library would tidy the path up before sending it."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    status, answer = send_raw(server, request)
    assert status == 404 and b"application/problem+json" in answer


@pytest.fixture(scope="module")
def finished(server: Stack) -> str:
    return str(server.post("/synthesize", {"text": "Hi.", "steps": 1}).json()["job_id"])


@pytest.mark.parametrize("event_id", ["x", "-1", "1.5", "²", "0x1", "9" * 5000])
def test_a_bad_last_event_id_is_refused(server: Stack, finished: str, event_id: str) -> None:
    headers = {"Last-Event-ID": event_id.encode("latin-1")}
    (error,) = problem(server.get(f"/jobs/{finished}/events", headers=headers), 422)["errors"]
    assert error["field"] == "Last-Event-ID" and "such as 3 or 3+24576" in error["detail"]
    assert is_echo(error["value"], event_id)


def test_an_event_id_beyond_a_chunks_samples_is_refused(server: Stack, finished: str) -> None:
    path, beyond = f"/jobs/{finished}/events", "0+999999999999"
    answers = {
        "Last-Event-ID": server.get(path, headers={"Last-Event-ID": beyond}),
        "last_event_id": server.get(path, params={"last_event_id": beyond}),
    }
    for field, answer in answers.items():
        (error,) = problem(answer, 422)["errors"]
        assert (error["field"], error["value"]) == (field, beyond)
        samples = int(re.findall(r"chunk 0 has (\d+) samples", error["detail"])[0])
        last = {"last_event_id": f"0+{samples}"}
        assert server.get(path, params=last).text.count("event: done") == 1
        after_it = {"last_event_id": f"0+{samples + 1}"}
        assert server.get(path, params=after_it).status_code == 422


def test_an_event_id_beyond_the_end_is_told_not_to_come_back(server: Stack, finished: str) -> None:
    answer = server.get(f"/jobs/{finished}/events", headers={"Last-Event-ID": "999999"})
    assert (answer.status_code, answer.text) == (204, "")


def test_who_has_heard_everything_but_the_end_gets_the_end(server: Stack, finished: str) -> None:
    chunks = server.get(f"/jobs/{finished}").json()["chunks_total"]
    answer = server.get(f"/jobs/{finished}/events", headers={"Last-Event-ID": str(chunks)})
    assert answer.status_code == 200
    assert answer.text.count("event: ") == answer.text.count("event: done") == 1


@pytest.mark.parametrize("wanted", ["bytes=x", "bytes=5-2", "bytes=-0", "bytes=99999999-"])
def test_a_bad_range_is_told_the_length(server: Stack, finished: str, wanted: str) -> None:
    length = len(server.get(f"/jobs/{finished}/audio").content)
    answer = server.get(f"/jobs/{finished}/audio", headers={"Range": wanted})
    problem(answer, 416)
    assert answer.headers["Content-Range"] == f"bytes */{length}"


@pytest.mark.parametrize(
    ("query", "field", "allowed"),
    [
        ("limit=0", "limit", "from 1 to 1000"),
        ("limit=1001", "limit", "from 1 to 1000"),
        ("limit=ten", "limit", "from 1 to 1000"),
        ("limit=1e3", "limit", "from 1 to 1000"),
        ("limit=²", "limit", "from 1 to 1000"),
        ("limit=" + "9" * 3000, "limit", "from 1 to 1000"),
        ("state=asleep", "state", "one of queued, running, paused, done, failed, cancelled"),
    ],
)
def test_a_bad_filter_of_the_job_list_is_refused(
    server: Stack, query: str, field: str, allowed: str
) -> None:
    (error,) = problem(server.get(f"/jobs?{query}"), 422)["errors"]
    assert error["field"] == field and allowed in error["detail"]
    assert is_echo(error["value"], query.partition("=")[2])


@pytest.mark.parametrize("flag", ["maybe", "", "2", "yes"])
def test_a_bad_flag_is_refused(server: Stack, finished: str, flag: str) -> None:
    events = server.get(f"/jobs/{finished}/events?audio={flag}")
    assert "true or false" in problem(events, 422)["errors"][0]["detail"]
    long = server.post(f"/synthesize/long?wait={flag}", {"text": "Hi."})
    assert problem(long, 422)["errors"][0] == {
        "field": "wait",
        "value": flag,
        "detail": "must be true or false",
    }


@pytest.mark.parametrize("field", ["target_chunk_chars", "max_chunk_chars"])
def test_a_bad_chunk_length_is_refused(server: Stack, field: str) -> None:
    for value in (49, 901, 100.5, "300", None):
        body = problem(server.post("/synthesize/long", {"text": "Hi.", field: value}), 422)
        assert body["errors"][0]["field"] == field and "50 to 900" in body["detail"]


BAD_LIMITS: list[tuple[str, Any, str]] = [
    *(("max_batch_size", value, "1 to 256") for value in (0, 257, -1, 2.5, "abc", True, [1])),
    *(("max_wait_time_ms", value, "0 to 1000") for value in (-1, 1001, "x", "nan", "inf", True)),
    ("max_batch", 3, "known are max_batch_size, max_wait_time_ms"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_LIMITS)
def test_a_bad_batch_limit_is_refused_and_changes_nothing(
    server: Stack, field: str, value: Any, allowed: str
) -> None:
    before = server.get("/").json()["batch"]
    (error,) = problem(server.post("/config/batch", {field: value}), 422)["errors"]
    assert error["field"] == field and allowed in error["detail"]
    assert is_echo(error["value"], value)
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        problem(server.post(f"/config/batch?{field}={value}"), 422)
    assert server.get("/").json()["batch"] == before


@pytest.mark.parametrize("data", [b"", b"{}", b"[3]", b"null", b'"max_batch_size"'])
def test_batch_limits_need_an_object_with_a_limit(server: Stack, data: bytes) -> None:
    answer = requests.post(server.url + "/config/batch", data=data, headers=JSON)
    problem(answer, 422)


# -- WebSocket -------------------------------------------------------------------------------


def say(**fields: object) -> str:
    return json.dumps({"type": "speak", "text": "Hi."} | fields)


@pytest.fixture(scope="module")
def ws(server: Stack) -> Iterator[websocket.WebSocket]:
    """One connection for all mistakes: none of them ends the conversation."""
    address = server.url.replace("http", "ws") + "/ws/synthesize"
    connection = websocket.create_connection(address, timeout=30)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("message", "status", "says"),
    [
        ('{"type":', 400, "not valid JSON"),
        (b"\x00\xff", 400, "not valid JSON"),
        ("[" * 200_000, 400, "not valid JSON"),
        (say(speed=float("nan")), 400, "NaN is not JSON"),
        ("null", 422, "must be one of speak, cancel, begin"),
        ('["speak"]', 422, "must be one of speak, cancel, begin"),
        ('{"type": "shout"}', 422, "must be one of speak, cancel, begin"),
        ('{"type": ["speak"]}', 422, "must be one of speak, cancel, begin"),
        ('{"text": "Hi."}', 422, "must be one of speak, cancel, begin"),
        ('{"type": "speak"}', 422, "text: is required"),
        (say(text="😀"), 422, "nothing to say"),
        (say(text=HALF), 422, "surrogate"),
        (say(text="a" * 50_001), 422, "at most 50000"),
        (say(voice="M9"), 422, "one of M1"),
        (say(language="xx"), 422, "one of en"),
        (say(speed=2.01), 422, SPEED),
        (say(steps=0), 422, STEPS),
        (say(sped=1), 422, KNOWN),
        (say(**{HALF: 1}), 422, KNOWN),
    ],
    ids=short,
)
def test_a_websocket_answers_a_mistake_and_goes_on(
    ws: websocket.WebSocket, message: str | bytes, status: int, says: str
) -> None:
    (ws.send_binary if isinstance(message, bytes) else ws.send)(message)
    answer = json.loads(ws.recv(), parse_constant=refuse_constant)
    assert (answer["type"], answer["status"]) == ("error", status)
    assert says in answer["detail"]
    ws.send(say(steps=1))
    assert json.loads(ws.recv())["type"] == "accepted"
    while not isinstance(frame := ws.recv(), str) or json.loads(frame)["type"] == "chunk":
        pass
    assert json.loads(frame)["type"] == "done"


def test_a_websocket_message_over_the_limit_closes_the_connection(server: Stack) -> None:
    address = server.url.replace("http", "ws") + "/ws/synthesize"
    connection = websocket.create_connection(address, timeout=30)
    connection.send("a" * 1_000_001)
    opcode, data = connection.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    assert int.from_bytes(data[:2]) == 1009, "message too big, in the words of RFC 6455"
    connection.shutdown()


def test_the_websocket_route_wants_a_websocket(server: Stack) -> None:
    problem(server.get("/ws/synthesize"), 400)


def test_a_text_that_is_too_long_is_refused_with_its_length(server: Stack) -> None:
    """Of a long job it may be longer (tests/test_uploads.py)."""
    text = "a" * 50_001
    for route in ("/synthesize", "/synthesize/stream"):
        (error,) = problem(server.post(route, {"text": text}), 422)["errors"]
        assert error["field"] == "text" and is_echo(error["value"], text)
        assert error["detail"] == "has 50001 characters; at most 50000 are allowed"


def test_a_text_of_too_many_pieces_is_refused_with_their_number(server: Stack) -> None:
    answer = server.post("/synthesize", {"text": "a\n\n" * 5000})
    assert answer.status_code == 422
    assert "5000 chunks; at most 2000" in answer.json()["errors"][0]["detail"]


def test_a_text_that_would_sound_for_hours_is_refused(server: Stack) -> None:
    text = "One. \n\n" * 1800 + "word " * 7200
    body = {"text": text, "speed": 0.5, "pause_s": 3.0}
    answer = server.post("/synthesize", body)
    assert answer.status_code == 422
    assert "at most 10800 s" in answer.json()["errors"][0]["detail"]
    longer = server.post("/synthesize/long", body | {"text": "One. \n\n" * 18_000 + text})
    assert longer.status_code == 422
    assert "at most 80000 s" in longer.json()["errors"][0]["detail"]


def test_invisible_characters_are_named_by_number_in_every_answer(server: Stack) -> None:
    text = "hello \x01 world"
    answer = server.post("/synthesize", {"text": text, "output_format": "wav"})
    assert answer.status_code == 200
    assert "U+0001" in answer.headers["X-Warnings"]


def test_another_sites_page_may_not_change_settings(server: Stack) -> None:
    headers = {"Origin": "http://evil.example"}
    answer = server.post("/config/batch?max_batch_size=2", headers=headers)
    assert answer.status_code == 403
    assert server.get("/").json()["batch"]["max_batch_size"] != 2


@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "x", ""])
def test_a_cursor_that_no_answer_gave_is_refused(server: Stack, score: str) -> None:
    cursor = base64.urlsafe_b64encode(f"{score} 5".encode()).decode()
    answer = problem(server.get(f"/jobs?cursor={cursor}"), 422)
    assert answer["errors"][0]["field"] == "cursor"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-WebSocket-Version": "13"}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}, 400),
        ({"Sec-WebSocket-Version": "12", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}, 426),
    ],
)
def test_a_handshake_that_is_none_is_told_why(
    server: Stack, headers: dict[str, str], status: int
) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    answer = server.get("/ws/synthesize", headers=upgrade | headers)
    problem(answer, status)
    assert answer.headers.get("Sec-WebSocket-Version") == ("13" if status == 426 else None)
