"""No key and no password is ever written down: not in a log, not in an answer, not in Redis."""

import logging
import socket
import sys
from pathlib import Path

import pytest
import requests
import websocket

from tasks.logs import JsonLines, TextLines
from tasks.redact import redact
from tests.stack import Stack, free_port, wait_for

KEY, ADMIN, WRONG, PASSWORD = "key-hush-1", "admin-hush-2", "wrong-hush-3", "redis-hush-4"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('"GET /jobs?limit=2&api_key=hush&x=1 HTTP/1.1" 200', "GET /jobs?limit=2&api_key=***&x=1"),
        ("GET /ws/synthesize?API_KEY=hush", "API_KEY=***"),
        ("{'Authorization': 'Bearer hush', 'A': 'b'}", "'Bearer ***', 'A': 'b'"),
        ("{'X-API-Key': 'hush'}", "'X-API-Key': '***'"),
        ("Error 111 connecting to redis://:hush@127.0.0.1:6379/0", "redis://:***@127.0.0.1"),
        ("Cannot connect to redis://:p/hush@h:6379/0: oh", "redis://:***@h:6379/0: oh"),
        ("amqp://anna:pp@hush@h//, redis://h:1/0", "amqp://anna:***@h//, redis://h:1/0"),
        ("ftp://anna@home:hush@h/jobs", "ftp://anna@home:***@h/jobs"),
        ("amqp://anna:it's-hush@h//", "amqp://anna:***@h//"),
        ('{"text": "Hi.", "api_key": "hush", "x": 1}', '"api_key": "***", "x": 1}'),
        (r"{\"api_key\":\"hush\"}", "api_key"),
        ("[('api_key', 'hush'), ('limit', '2')]", "('limit', '2')"),
        ("api_key='hush'", "api_key='***'"),
        ("GET /jobs?api%5Fkey=hush&x=1", "api%5Fkey=***&x=1"),
        ("path=/jobs/x%3Fapi_key%3Dhush", "path=/jobs/x%3Fapi_key%3D***"),
        ("http://127.0.0.1:8002 answers", "http://127.0.0.1:8002 answers"),
        ("at http://h:8002, as celery@host", "at http://h:8002, as celery@host"),
        ("no api_key: anybody may ask", "no api_key: anybody may ask"),
    ],
)
def test_a_secret_in_a_line_is_hidden_and_the_rest_stays(line: str, kept: str) -> None:
    shown = redact(line)
    assert "hush" not in shown and kept in shown


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_key_in_the_path_of_a_request_is_hidden(stack: Stack, log_format: str) -> None:
    stack.env["SUPERTONIC_LOG_FORMAT"] = log_format
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    stack.get(f"/nowhere%3Fapi_key%3D{KEY}%26x=1")
    stack.stop("web")
    assert "api_key=***&x=1" in stack.log("web") and KEY not in stack.log("web")


def test_nothing_secret_is_in_any_log_or_answer(stack: Stack) -> None:
    """With debug logs, with mistakes of all kinds, and Redis going away meanwhile."""
    stack.redis_url = f"redis://:{PASSWORD}@127.0.0.1:{stack.redis_port}/0"
    stack.env |= {
        "SUPERTONIC_REDIS_URL": stack.redis_url,
        "SUPERTONIC_API_KEYS": KEY,
        "SUPERTONIC_ADMIN_KEY": ADMIN,
        "SUPERTONIC_LOG_LEVEL": "DEBUG",
        "SUPERTONIC_WEB_PROCESSES": "1",
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    stack.start("redis", *redis_command(stack), "--requirepass", PASSWORD)
    stack.start_worker()
    stack.start_files()
    stack.start_web()
    port = free_port()
    stack.start("flower", sys.executable, "-m", "celery", "-A", "tasks", "flower", f"--port={port}")
    stack.wait_ready()
    flower = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{flower}/api/workers?refresh=1").text.count("worker@test"), 30)

    answers = [
        stack.post(f"/synthesize?api_key={KEY}", {"text": "Hello."}),
        stack.post("/synthesize", {"text": "Hello.", "api_key": KEY}, headers=bearer(KEY)),
        stack.post("/synthesize/long", {"text": "Hello."}, headers={"X-API-Key": KEY}),
        stack.post(f"/config/batch?api_key={ADMIN}&max_batch_size=8"),
        stack.post(f"/config/batch?api_key={WRONG}"),
        stack.get(f"/nowhere?api_key={KEY}"),
        stack.get(f"/jobs?api_key={WRONG}", headers=bearer(WRONG)),
        stack.get(f"/jobs?limit=x&api_key={KEY}", headers={"Referer": f"/ui?api_key={KEY}"}),
        stack.get(f"/jobs/%00?api_key={KEY}"),
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 422, 202, 200, 403, 404, 401, 422, 404]
    address = stack.url.replace("http", "ws") + "/ws/synthesize?api_key="
    websocket.create_connection(address + KEY, timeout=10).close()
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(address + WRONG, timeout=10)
    for request_ in (f"GET /?api_key={KEY} HTTP/9.9\r\n\r\n", f"GET /?api_key={KEY}\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as sock:
            sock.sendall(request_.encode())
            sock.recv(1000)
    pages = [requests.get(flower + path).text for path in ("/", "/tasks", "/broker", "/api/tasks")]

    stack.kill("redis")
    answers.append(stack.get(f"/jobs?api_key={KEY}"))
    assert answers[-1].status_code == 503
    wait_for(lambda: "onnection" in stack.log("worker"), 20)
    for name in list(stack.processes):
        stack.kill(name)  # without Redis they would take their time
    logs = {name: stack.log(name) for name in ("web", "worker", "files", "flower", "redis")}
    assert "path=/jobs status=422" in logs["web"], "requests are logged"
    assert "SUPERTONIC_API_KEYS holds a key as it is" in logs["web"]
    for name, text in logs.items():
        hushed = [line for line in text.splitlines() if "hush" in line]
        assert hushed == [], name
    for text in [answer.text for answer in answers] + pages:
        assert "hush" not in text


def test_a_traceback_is_redacted_as_well() -> None:
    record = None
    try:
        raise ValueError("cannot open redis://:hush@host/0?api_key=hush")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "oh", (), sys.exc_info())
    shown = TextLines().format(record) + JsonLines("web").format(record)
    assert "ValueError" in shown and "hush" not in shown


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def redis_command(stack: Stack) -> list[str]:
    from tests.stack import redis_binary

    options = ["--bind", "127.0.0.1", "--dir", str(Path(stack.folder)), "--save", ""]
    return [redis_binary(), "--port", str(stack.redis_port), *options]
