"""The WebSocket under clients that read slowly, send too much, fall silent or change their mind."""

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

from tasks.events import EventStore
from tasks.messages import State
from tests.impatient_web import IDLE_S
from tests.memory import Peaks, resident_bytes
from tests.stack import Stack, full, wait_for

SENTENCE = "This is a sentence of about three or four seconds, no more. "
# A few minutes of sound: more than the kernel keeps for a client that does not read.
LONG_TEXT = SENTENCE * 60


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that makes sound much faster than anybody could hear it."""
    stack = Stack(tmp_path_factory.mktemp("quick"), PACE="300")
    try:
        stack.start_redis()
        stack.start_worker(app="tests.paced_worker")
        stack.start_web()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop_all()


@contextmanager
def connect(stack: Stack, **options: Any) -> Iterator[websocket.WebSocket]:
    address = stack.url.replace("http", "ws") + "/ws/synthesize"
    ws = websocket.create_connection(address, timeout=20, **options)
    try:
        yield ws
    finally:
        ws.shutdown()


# Small, so that little is on its way and a frame is soon stuck.
SLOW = {"sockopt": [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]}


def say(text: str = "Hi.", **fields: object) -> str:
    return json.dumps({"type": "speak", "text": text} | fields)


def until_ending(ws: websocket.WebSocket) -> list[dict[str, Any]]:
    """All messages up to one that ends a text. Every chunk has its frame, whole, behind it."""
    heard = [json.loads(ws.recv())]
    while heard[-1]["type"] in ("accepted", "chunk"):
        if heard[-1]["type"] == "chunk":
            frame = ws.recv()
            assert isinstance(frame, bytes) and len(frame) == 2 * heard[-1]["n_samples"]
        heard.append(json.loads(ws.recv()))
    return heard


def wait_until_stuck(ws: websocket.WebSocket) -> None:
    """Until the server can send no more for a second, because nobody reads."""
    local, remote = (address[1] for address in (ws.sock.getsockname(), ws.sock.getpeername()))
    waiting: list[int] = []

    def is_stuck() -> bool:
        time.sleep(0.1)
        waiting.append(int(connection(remote, local)[4].partition(":")[0], 16))
        return len(waiting) > 10 and waiting[-1] > 0 and len(set(waiting[-10:])) == 1

    wait_for(is_stuck, 20, "what the server sends waits in the kernel")


def connection(local: int, remote: int) -> list[str]:
    """What the kernel says of a connection between these ports, from the side of the first."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(address.partition(":")[2], 16) for address in fields[1:3]]
        if ports == [local, remote]:
            return fields
    raise AssertionError("there is no such connection")


# -- clients that read slowly -----------------------------------------------------------------


def test_pings_of_a_client_that_reads_slowly_leave_every_frame_whole(quick: Stack) -> None:
    with connect(quick, **SLOW) as ws:
        ws.send(say(LONG_TEXT))
        wait_until_stuck(ws)
        for number in range(50):
            ws.ping(b"still here %d" % number)
        heard = until_ending(ws)
        assert heard[-1]["type"] == "done"
        ws.send(say())
        assert until_ending(ws)[-1]["type"] == "done"


def test_who_sends_and_does_not_read_fills_no_memory(quick: Stack) -> None:
    web = quick.processes["web"].pid
    mistake = json.dumps({"type": "shout", "what": "a" * 900_000})
    with connect(quick, **SLOW) as ws:
        ws.send(say(LONG_TEXT))
        wait_until_stuck(ws)
        ws.settimeout(3)
        with Peaks({"web": lambda: resident_bytes(web)}) as peaks:
            # The kernel keeps a few of them; then the client has to wait, as it lets us wait.
            with pytest.raises(websocket.WebSocketTimeoutException):
                for _ in range(200):
                    ws.send(mistake)
        assert peaks.growth["web"] < 30e6


def test_what_was_sent_meanwhile_is_answered_when_the_client_reads(quick: Stack) -> None:
    with connect(quick, **SLOW) as ws:
        ws.send(say(LONG_TEXT))
        wait_until_stuck(ws)
        for _ in range(20):
            ws.send('{"type": "shout"}')
        ws.send(say())
        endings = [until_ending(ws)[-1]["type"] for _ in range(22)]
        assert sorted(endings) == ["done"] * 2 + ["error"] * 20


def connected(stack: Stack, opened: ExitStack) -> websocket.WebSocket | None:
    """None while the threads of those before are being given back."""
    try:
        return opened.enter_context(connect(stack))
    except websocket.WebSocketBadStatusException:
        return None


def test_a_message_over_the_limit_keeps_no_thread(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_WEB_PROCESSES": "1", "SUPERTONIC_WEB_THREADS": "12"}
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").ok)
    for _ in range(30):
        with ExitStack() as opened:
            ws = wait_for(lambda opened=opened: connected(stack, opened), 10)
            ws.send("a" * 1_000_001)
            assert ws.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
    assert stack.get("/livez").ok


# -- texts that wait --------------------------------------------------------------------------


def test_a_mistake_is_answered_at_once_and_the_texts_around_it_are_spoken(quick: Stack) -> None:
    with connect(quick) as ws, quick.held():
        ws.send(say("One."))
        assert json.loads(ws.recv())["type"] == "accepted"
        for mistake in (say(speed=9), say("a" * 50_001), say([[], []]), say("\ud800")):
            ws.send(mistake)
            assert json.loads(ws.recv())["status"] == 422
        ws.send(say("Two."))
        quick.processes["worker"].send_signal(signal.SIGCONT)
        assert [until_ending(ws)[-1]["type"] for _ in range(2)] == ["done", "done"]


def test_a_full_redis_is_told_as_what_it_is(quick: Stack) -> None:
    def told_in_time(ws: websocket.WebSocket) -> dict[str, Any] | None:
        """None where the server, or this test, stood still for so long that it looked again."""
        time.sleep(1.1)
        ws.send(say("There is room, and for a second nobody looks again."))
        assert until_ending(ws)[-1]["type"] == "done"
        with full(quick.redis):
            ws.send(say("Too much."))
            answer: dict[str, Any] = json.loads(ws.recv())
        return None if "nearly full" in answer.get("detail", "") else answer

    with connect(quick) as ws:
        told = wait_for(lambda: told_in_time(ws))
        assert told["type"] == "error" and "no memory left" in told["detail"], told
        ws.send(say("There is room again."))
        assert until_ending(ws)[-1]["type"] == "done"


def test_waiting_texts_are_bounded_in_all(quick: Stack) -> None:
    text = SENTENCE * 800
    with connect(quick) as ws, quick.held():
        ws.send(say("One."))
        assert json.loads(ws.recv())["type"] == "accepted"
        for _ in range(12):
            ws.send(say(text))
        refused = json.loads(ws.recv())
        assert (refused["type"], refused["status"]) == ("error", 429)
        assert "500000 characters are waiting" in refused["detail"]
        ws.send('{"type": "cancel"}')
        while json.loads(ws.recv())["type"] == "error":
            pass
        ws.send(say("Two."))
        assert json.loads(ws.recv())["type"] == "accepted", "what was dropped waits no more"


def test_names_count_among_what_waits(quick: Stack) -> None:
    with connect(quick) as ws, quick.held():
        ws.send(say("One."))
        assert json.loads(ws.recv())["type"] == "accepted"
        for _ in range(2):
            ws.send(say(voice="M" * 300_000))
        assert json.loads(ws.recv())["status"] == 429


# -- clients that fall silent -----------------------------------------------------------------


def test_the_kernel_asks_whether_a_silent_client_is_still_there(quick: Stack) -> None:
    with connect(quick) as ws:
        port = ws.sock.getsockname()[1]

        def timer() -> str:
            return connection(quick.port, port)[5].partition(":")[0]

        # Another one runs until what was sent has been confirmed.
        wait_for(lambda: timer() == "02", what="a keepalive timer runs on the server's side")


def test_a_websocket_on_which_nothing_is_said_is_closed(stack: Stack) -> None:
    """Also for a client that pings: it is there, but it keeps a thread from others."""
    stack.env["PACE"] = "16"
    stack.start_redis()
    stack.start_worker(app="tests.paced_worker")
    application = ("-c", "app/gunicorn.py", "tests.impatient_web:create_app()")
    stack.start("web", sys.executable, "-m", "gunicorn", *application)
    stack.wait_ready()
    with connect(stack) as ws:
        ws.send(say(SENTENCE * 24))
        began = time.monotonic()
        assert until_ending(ws)[-1]["type"] == "done"
        took_s = time.monotonic() - began
        assert took_s > IDLE_S + 1, "while something is spoken, nobody need say anything"
        ended, frame = time.monotonic(), (0, b"")
        while frame[0] != websocket.ABNF.OPCODE_CLOSE:
            assert time.monotonic() - ended < 10 * IDLE_S, "the pings keep it open"
            ws.ping()
            frame = ws.recv_data(control_frame=True)
            time.sleep(0.05)
        assert int.from_bytes(frame[1][:2]) == 1000
        assert frame[1][2:] == b"nothing was said for %d s" % IDLE_S


# -- cancelling -------------------------------------------------------------------------------


def test_a_cancel_that_meets_a_failure_is_answered_as_a_cancel(quick: Stack) -> None:
    with connect(quick, **SLOW) as ws:
        ws.send(say(SENTENCE * 600))
        job_id = json.loads(ws.recv())["job_id"]
        wait_until_stuck(ws)
        with quick.held():
            # While the server is busy sending, so that it learns of both when it looks again.
            assert EventStore(quick.redis).end(job_id, State.FAILED, "the engine broke")
            ws.send('{"type": "cancel"}')
            heard = until_ending(ws)
        samples = sum(message.get("n_samples", 0) for message in heard)
        assert (heard[-1]["type"], heard[-1]["job_id"]) == ("cancelled", job_id)
        assert heard[-1]["samples_sent"] == samples > 0
        ws.send(say())
        assert until_ending(ws)[-1]["type"] == "done"


def test_a_job_that_is_deleted_elsewhere_ends_in_a_cancelled(quick: Stack) -> None:
    with connect(quick, **SLOW) as ws:
        ws.send(say(SENTENCE * 600))
        job_id = json.loads(ws.recv())["job_id"]
        wait_until_stuck(ws)
        assert quick.delete(f"/jobs/{job_id}").json()["state"] == "cancelled"
        heard = until_ending(ws)
        samples = sum(message.get("n_samples", 0) for message in heard)
        assert (heard[-1]["type"], heard[-1]["job_id"]) == ("cancelled", job_id)
        assert heard[-1]["samples_sent"] == samples > 0


def test_a_text_with_a_name_is_told_by_it(quick: Stack) -> None:
    with connect(quick) as ws:
        ws.send(say("One. Two.", id="first"))
        told = until_ending(ws)
        assert [message["type"] for message in told][-1] == "done"
        assert {message["id"] for message in told} == {"first"}
        ws.send(say("Without."))
        assert all("id" not in message for message in until_ending(ws))
        for mistake, name in ((say(speed=9, id="a"), "a"), (say("\ud800", id="b"), "b")):
            ws.send(mistake)
            assert json.loads(ws.recv())["id"] == name
        ws.send(say(id="x" * 101))
        refused = json.loads(ws.recv())
        assert "id" not in refused and "at most 100 characters" in refused["detail"]
        with quick.held():
            for name in ("spoken", "waiting", "waiting too"):
                ws.send(say(id=name))
            ws.send(say())
            assert json.loads(ws.recv())["id"] == "spoken"
            ws.send('{"type": "cancel"}')
            endings = [until_ending(ws)[-1] for _ in range(3)]
        assert {message["type"] for message in endings} == {"cancelled"}
        assert sorted(message["id"] for message in endings) == ["spoken", "waiting", "waiting too"]


def test_after_a_cancel_a_cancelled_comes_wherever_it_falls(quick: Stack) -> None:
    """Cancels at all moments of short texts, some of which cannot be spoken."""
    texts = (say(), say("😀"), say(voice="M9"), say(speed=9))
    with connect(quick) as ws:
        for number in range(80):
            ws.send(texts[number % 4])
            time.sleep(0.001 * (number // 4))
            ws.send('{"type": "cancel"}')
            types: list[str] = []
            while types[-1:] != ["cancelled"]:
                types.append(until_ending(ws)[-1]["type"])
            assert types[:-1] in ([], ["done"], ["error"])
