"""Speech over a WebSocket: texts in, binary audio frames out, one text at a time, in order.

A connection has three threads. The request's own speaks; one hears what the client says, so that a
cancel or a hang-up takes effect while chunks are being sent; and simple_websocket's takes frames
off the network and answers pings.
"""

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from flask import Blueprint, Flask, current_app, request
from flask_sock import Sock
from kombu.exceptions import OperationalError
from simple_websocket import ConnectionClosed, Server
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from app.access import Visitor
from app.errors import Problem, away, field_problem
from app.fields import MAX_NAME
from app.follow import Spoken
from app.fragments import Fragments
from app.hangup import keep_alive
from app.jobs import Speech
from app.outcome import Cancelled, until_done
from app.reading import parse_json, validate
from app.schemas import BeginBody, Text, WishBody
from app.stream import accepted, chunk_head
from app.submit import check_text
from app.turns import Turns
from tasks.messages import Job, Kind, State

KINDS = ("speak", "cancel", "begin", "text", "flush", "end")
# A client that is there and says nothing keeps a thread from others.
IDLE_S = 600.0
# A client gets this long to take the last frame and to answer it.
CLOSE_S = 5.0
# simple_websocket may forget to say that the connection is over, so we look ourselves.
LOOK_S = 2.0

logger = logging.getLogger(__name__)

blueprint = Blueprint("websocket", __name__)
sock = Sock()


class FrameSocket:
    """The client's socket as simple_websocket uses it, from several threads.

    Frames leave one at a time, each whole: a pong must not land in the middle of a large frame that
    waits for a slow reader. And nothing more is taken off the network while a message has not been
    heard; so who sends without reading has to wait, and does not fill our memory.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._hearing = threading.Condition()
        self._unheard: list[str | bytes] = []
        keep_alive(sock)

    def wait_for_room_in(self, unheard: list[str | bytes]) -> None:
        """From now on, receive only while this list of messages is empty."""
        self._unheard = unheard

    def heard(self) -> None:
        """A message has been taken off the list."""
        with self._hearing:
            self._hearing.notify()

    def send(self, data: bytes) -> int:
        with self._sending:
            self._sock.sendall(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        with self._hearing:
            self._hearing.wait_for(lambda: not self._unheard)
        return self._sock.recv(size)

    def hang_up(self) -> None:
        """End all sending and receiving, also what is blocked; what was sent still arrives."""
        self._unheard = []
        self.heard()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


class _Conversation:
    """One WebSocket, from its first message to its end."""

    def __init__(self, ws: Server, app: Flask, visitor: Visitor) -> None:
        self.ws = ws
        self.app = app
        self.speech: Speech = app.extensions["speech"]
        self.visitor = visitor
        self.fragments: Fragments | None = None
        self.job: Job | None = None
        self.samples_sent = 0
        self.name: dict[str, str] = {}  # of the text being spoken, if its client gave it one
        self.is_speaking = False
        self.is_cancelled = False
        self.quiet_since = time.monotonic()
        self._state = threading.Condition()
        # Fragments stand for the end of a text that came in some; None for the client's leaving.
        self.turns = Turns[Fragments | None](self._state)
        # Taken before _state. Reentrant: an ending is decided and sent at once.
        self._sending = threading.RLock()

    def run(self) -> None:
        self.ws.sock.wait_for_room_in(self.ws.input_buffer)
        threading.Thread(target=self._read, name="websocket", daemon=True).start()
        try:
            while (wish := self._next_wish()) is not None:
                if isinstance(wish, Fragments):
                    self._send({"type": "ended", "texts": wish.n_texts} | _named(wish))
                else:
                    self._answer(wish)
        finally:
            self._close()

    # -- reading, in a thread of its own -----------------------------------------------------

    def _read(self) -> None:
        try:
            with self.app.app_context():
                while True:
                    message = self.ws.receive(timeout=LOOK_S)
                    if message is not None:
                        self.ws.sock.heard()
                        self._hear(message)
        except ConnectionClosed:
            pass
        finally:
            # Whatever ended the reading: nothing is spoken for nobody, and the sender stops.
            try:
                self._cancel()
            except (redis.RedisError, OperationalError) as error:
                logger.warning("could not cancel a job after its client left: %s", error)
            self.turns.close(None)

    def _hear(self, message: str | bytes) -> None:
        self.quiet_since = time.monotonic()
        data: Any = None
        try:
            data = parse_json(message)
            kind = data.pop("type", None) if isinstance(data, dict) else None
            if kind == "speak":
                self._wish(data)
            elif kind in ("begin", "text", "flush", "end"):
                self._take_fragment(kind, data)
            elif kind == "cancel":
                was_speaking, dropped = self._cancel()
                for wish in dropped:
                    if wish.id is not None:
                        self._send({"type": "cancelled", "samples_sent": 0, "id": wish.id})
                if not was_speaking:
                    self._send({"type": "cancelled", "samples_sent": 0})
            else:
                raise field_problem("type", kind, f"must be one of {', '.join(KINDS)}")
        except Problem as problem:
            self._send(_error(problem) | (_named(data) or _named(self.fragments)))
        except (redis.RedisError, OperationalError) as error:
            self._send(_error(away(error)) | _named(data))

    def _wish(self, data: dict[str, Any]) -> None:
        """Check what can be checked without the workers, and let it wait for its turn."""
        if self.fragments is not None:
            raise Problem(409, "A text that comes in fragments has not ended; send its end first.")
        self.visitor.check_text()
        wish = validate(WishBody, data)
        check_text(wish, self.speech.settings)
        self.turns.add(wish)

    def _take_fragment(self, kind: str, data: dict[str, Any]) -> None:
        """Of a text that comes in fragments, which are spoken sentence by sentence."""
        if kind == "begin":
            if self.fragments is not None:
                raise Problem(409, "Another text has begun; send its end first.")
            self.visitor.check_text()
            body = validate(BeginBody, data)
            lexicon = self.speech.lexicons.of(body)
            self.fragments = Fragments(body, self.speech.settings, lexicon)
            return
        if self.fragments is None:
            raise Problem(409, "No text has begun; send a begin first.")
        if kind == "text":
            wish = self.fragments.add(validate(Text, data).text)
        else:
            try:
                wish = self.fragments.flush(is_end=kind == "end")
            except Problem:
                # It is not spoken, but what came before it is, and the text ends.
                self._end(kind, self.fragments)
                raise
        if wish is not None:
            self.turns.add_sentences(self.fragments, wish)
        self._end(kind, self.fragments)

    def _end(self, kind: str, fragments: Fragments) -> None:
        if kind == "end":
            self.turns.mark(fragments)
            self.fragments = None

    def _cancel(self) -> tuple[bool, list[WishBody]]:
        """Drop what waits and stop what is spoken: whether anything was, and what waited."""
        with self._state:
            dropped = self.turns.drop()
            self.fragments = None
            self.is_cancelled = was_speaking = self.is_speaking
            job = self.job
        if job is not None:
            self.speech.cancel(job)
        return was_speaking, dropped

    # -- speaking, in the request's thread ---------------------------------------------------

    def _next_wish(self) -> WishBody | Fragments | None:
        """The next text; None when the client has left or has long said nothing."""
        with self._state:
            while not self.turns:
                left_s = self.quiet_since + IDLE_S - time.monotonic()
                if left_s <= 0:
                    return None
                self._state.wait(left_s)
            wish = self.turns.take()
            self.job, self.samples_sent = None, 0
            self.name = _named(wish)
            self.is_speaking, self.is_cancelled = isinstance(wish, WishBody), False
            return wish

    def _answer(self, wish: WishBody) -> None:
        """Speak a text and say how that ended: done, cancelled or an error, exactly one of them."""
        try:
            self._speak(wish)
            ending = {"type": State.DONE.value} | self._so_far()
        except Cancelled:
            ending = {"type": State.CANCELLED.value} | self._so_far()
        except Problem as problem:
            ending = _error(problem)
        except (redis.RedisError, OperationalError) as error:
            ending = _error(away(error))
        # A cancel that comes from here on is answered after this ending.
        with self._sending:
            with self._state:
                self.is_speaking = False
                self.quiet_since = time.monotonic()
                if self.is_cancelled:
                    # Whatever else happened: who sent the cancel waits for its answer.
                    ending = {"type": "cancelled"} | self._so_far()
                self.job = None
            self._send(ending | self.name)

    def _speak(self, wish: WishBody) -> None:
        """Send a text's chunks. Raises as ``until_done`` does."""
        job, pieces = self.speech.submit(wish, Kind.STREAM, self.visitor.owner, wish.slices)
        with self._state:
            self.job = job
            is_too_late = self.is_cancelled
        if is_too_late:
            # The cancel came while the job was being made.
            self.speech.cancel(job)
        self._send({"type": "accepted"} | accepted(job) | self.name)
        for item in until_done(self.speech, job, pieces):
            if not self.ws.connected:
                # The reading thread may have failed to cancel, for want of Redis.
                self.speech.cancel(job)
                raise Cancelled(job)
            if isinstance(item, Spoken) and item.pcm is not None:
                self._send({"type": "chunk"} | chunk_head(job, item) | self.name, item.pcm)
                self.samples_sent += item.n_samples

    def _so_far(self) -> dict[str, Any]:
        job = self.job
        of_job = {} if job is None else {"job_id": job.job_id, "total_chunks": job.count}
        return of_job | {"samples_sent": self.samples_sent}

    def _send(self, body: dict[str, Any], frame: bytes | None = None) -> None:
        try:
            with self._sending:
                self.ws.send(json.dumps(body, ensure_ascii=False))
                if frame is not None:
                    self.ws.send(frame)
        except (ConnectionClosed, LocalProtocolError, OSError):
            # The reading thread notices too, cancels the job and ends the conversation.
            pass

    def _close(self) -> None:
        """Leave nothing behind, and say why where the client is still there."""
        if self.ws.connected:
            code, why = CloseReason.NORMAL_CLOSURE, f"nothing was said for {IDLE_S:.0f} s"
            if time.monotonic() - self.quiet_since < IDLE_S:
                code, why = CloseReason.INTERNAL_ERROR, "the server made a mistake"
            patience = threading.Timer(CLOSE_S, self.ws.sock.hang_up)
            patience.start()
            with suppress(ConnectionClosed, LocalProtocolError, OSError):
                self.ws.close(code, why)
            # Until the client has answered, or our patience has ended it.
            self.ws.thread.join()
            patience.cancel()
        self.ws.sock.hang_up()


def _named(about: Any) -> dict[str, str]:
    """The name that a client gave a text, to be told with whatever becomes of it."""
    about = about.body if isinstance(about, Fragments) else about
    name = about.get("id") if isinstance(about, dict) else getattr(about, "id", None)
    return {"id": name} if isinstance(name, str) and len(name) <= MAX_NAME else {}


def _error(problem: Problem) -> dict[str, Any]:
    body = problem.body() | {"type": "error"}
    if problem.retry_after_s is not None:
        body["retry_after_seconds"] = problem.retry_after_s
    return body


@blueprint.before_request
def guard_socket() -> None:
    """simple_websocket gets ours in place of gunicorn's."""
    found = request.environ.get("gunicorn.socket")
    if found is not None:
        request.environ["gunicorn.socket"] = FrameSocket(found)


@sock.route("/ws/synthesize", bp=blueprint)
def synthesize(ws: Server) -> None:
    """Text in, binary s16le frames out; see README for the messages."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    _Conversation(ws, app, Visitor(request)).run()
