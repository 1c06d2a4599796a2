"""What is said on one connection in Wyoming: a client asks what there is, sends texts, gets sound.

A connection has two threads. One speaks the texts, in order; one hears what the client says, so
that a hang-up takes effect while sound is being sent.
"""

import itertools
import logging
import socket
import threading
import time
from typing import Any

import redis
from kombu.exceptions import OperationalError

from app.errors import Problem, away, field_problem
from app.follow import Spoken
from app.fragments import Fragments
from app.jobs import Speech
from app.limits import SpeechLimit
from app.outcome import until_done
from app.reading import validate
from app.schemas import BeginBody, Text, WishBody
from app.turns import Turns
from app.wyoming_voices import info, manner
from app.wyoming_wire import Event, Wire
from tasks.messages import Job, Kind

# The protocol knows no keys: all its clients together are held to what one key may have waiting.
OWNER = "wyoming"
# A client that is there and says nothing keeps others out.
IDLE_S = 600.0
RETRY_S = 5
# Of an audio-chunk: small clients have small buffers.
CHUNK_BYTES = 32_768

logger = logging.getLogger(__name__)


class Conversation:
    """One connection, from its first event to its end."""

    def __init__(self, sock: socket.socket, speech: Speech, limit: SpeechLimit) -> None:
        self.wire = Wire(sock, speech.settings.max_body_bytes, self._may_wait)
        self.speech = speech
        self.limit = limit
        self._address = str(sock.getpeername()[0])
        self._state = threading.Condition()
        # Fragments stand for the end of a stream; an error for the sound of a text that was wrong;
        # None for the client's leaving.
        self._turns = Turns[Fragments | Event | None](self._state)
        self._is_speaking = self._has_left = self._is_stopping = False
        self._job: Job | None = None
        self._quiet_since = time.monotonic()
        # Of the stream that has begun, if one has. What follows something wrong is left out, and so
        # is what follows a text of it that failed: a hole in the middle would go unnoticed.
        self._fragments: Fragments | None = None
        self._is_refused = False
        self._failed: str | None = None
        self._names = map(str, itertools.count())

    def run(self) -> None:
        reader = threading.Thread(target=self._read, name="wyoming reader", daemon=True)
        reader.start()
        try:
            while (turn := self._next_turn()) is not None:
                self._answer(turn)
        except OSError as error:
            logger.info("a client of Wyoming has left, or takes nothing: %s", error)
        finally:
            self.wire.hang_up()
            reader.join()
            self.wire.close()

    def refuse(self, why: str) -> None:
        """In place of ``run``: say why not, and hang up."""
        try:
            self._say(Problem(503, why, retry_after_s=RETRY_S))
        finally:
            self.wire.hang_up()
            self.wire.close()

    def stop(self) -> None:
        """End it after the text that is being spoken."""
        with self._state:
            self._is_stopping = True
            self._state.notify()

    # -- reading, in a thread of its own -----------------------------------------------------

    def _read(self) -> None:
        try:
            while (event := self.wire.read()) is not None:
                if event.type != "ping":
                    self._quiet_since = time.monotonic()
                self._hear(event)
        except Problem as problem:
            self._try_to_say(problem)
        except OSError:
            pass  # It has left.
        except Exception:
            # The client is let go, and others never notice.
            logger.exception("unexpected error")
        finally:
            # Whatever ended the reading: nothing is spoken for nobody.
            self._leave()

    def _may_wait(self) -> bool:
        with self._state:
            is_busy = self._is_speaking or len(self._turns) > 0
        return is_busy or time.monotonic() - self._quiet_since < IDLE_S

    def _hear(self, event: Event) -> None:
        try:
            match event.type:
                case "describe":
                    self.wire.write("info", info(self.speech))
                case "ping":
                    self.wire.write("pong", {"text": event.data.get("text")})
                case "synthesize":
                    self._take_text(event.data)
                case "synthesize-start":
                    self._begin(event.data)
                case "synthesize-chunk":
                    self._go_on(event.data)
                case "synthesize-stop":
                    self._end()
                # Others are for other programs; the protocol wants them dropped.
        except Problem as problem:
            self._say(problem)
        except (redis.RedisError, OperationalError) as error:
            self._say(away(error))

    def _take_text(self, data: dict[str, Any]) -> None:
        if self._fragments is not None:
            return  # The whole text once more, for servers that know no streams.
        try:
            self.limit.count(self._address)
            self._turns.add(validate(WishBody, manner(data, self.speech) | text_in(data)))
        except Problem as problem:
            self._turns.mark(error_of(problem))
        except (redis.RedisError, OperationalError) as error:
            self._turns.mark(error_of(away(error)))

    def _begin(self, data: dict[str, Any]) -> None:
        if self._fragments is not None:
            raise Problem(409, "Another stream has begun; send its synthesize-stop first.")
        settings = self.speech.settings
        # The stream begins all the same: its end has to be answered.
        self._is_refused = True
        self._fragments = Fragments(BeginBody(language=settings.language), settings)
        self.limit.count(self._address)
        if data.get("text_format") == "ssml":
            detail = "must be text in a stream; send SSML in one synthesize"
            raise field_problem("text_format", "ssml", detail)
        body = validate(BeginBody, manner(data, self.speech) | {"id": next(self._names)})
        lexicon = self.speech.lexicons.of(body)
        self._fragments, self._is_refused = Fragments(body, settings, lexicon), False

    def _go_on(self, data: dict[str, Any]) -> None:
        if self._fragments is None:
            raise Problem(409, "No stream has begun; send a synthesize-start first.")
        if self._is_refused:
            return
        self._is_refused = True
        wish = self._fragments.add(validate(Text, text_in(data)).text)
        if wish is not None:
            self._turns.add_sentences(self._fragments, wish)
        self._is_refused = False

    def _end(self) -> None:
        fragments, self._fragments = self._fragments, None
        if fragments is None:
            raise Problem(409, "No stream has begun; send a synthesize-start first.")
        try:
            wish = None if self._is_refused else fragments.flush(is_end=True)
            if wish is not None:
                self._turns.add_sentences(fragments, wish)
        finally:
            self._turns.mark(fragments)

    def _leave(self) -> None:
        with self._state:
            self._has_left = True
            self._turns.close(None)
            job = self._job
        if job is not None:
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        try:
            self.speech.cancel(job)
        except (redis.RedisError, OperationalError) as error:
            logger.warning("could not cancel a job after its client left: %s", error)

    # -- speaking, in the connection's thread ------------------------------------------------

    def _next_turn(self) -> WishBody | Fragments | Event | None:
        """None when the client has left, or is to leave."""
        with self._state:
            self._job, self._is_speaking = None, False
            self._quiet_since = time.monotonic()
            self._state.wait_for(lambda: self._turns or self._is_stopping)
            if self._is_stopping:
                return None
            self._is_speaking = True
            return self._turns.take()

    def _answer(self, turn: WishBody | Fragments | Event) -> None:
        """Every text ends with an audio-stop and every stream with a synthesize-stopped, also
        behind an error: Home Assistant waits for nothing else.
        """
        if isinstance(turn, Fragments):
            self.wire.write("synthesize-stopped")
            return
        if isinstance(turn, Event):
            self.wire.write(turn.type, turn.data)
        elif turn.id is not None and turn.id == self._failed:
            return
        else:
            self._speak(turn)
        self.wire.write("audio-stop")

    def _speak(self, wish: WishBody) -> None:
        """Send a text's sound, or why there is none."""
        try:
            self._send_sound(wish)
        except Problem as problem:
            self._failed = wish.id
            self._say(problem)
        except (redis.RedisError, OperationalError) as error:
            self._failed = wish.id
            self._say(away(error))

    def _send_sound(self, wish: WishBody) -> None:
        job, pieces = self.speech.submit(wish, Kind.STREAM, OWNER, wish.slices)
        with self._state:
            # A client that leaves from here on has it cancelled.
            self._job = job
            is_too_late = self._has_left
        if is_too_late:
            self._cancel(job)
            return
        sound_format = {"rate": job.sample_rate, "width": 2, "channels": 1}
        self.wire.write("audio-start", sound_format)
        for item in until_done(self.speech, job, pieces):
            if self._has_left:
                # The other thread may have failed to cancel, for want of Redis.
                self._cancel(job)
                return
            if isinstance(item, Spoken) and item.pcm:
                for begin in range(0, len(item.pcm), CHUNK_BYTES):
                    sound = item.pcm[begin : begin + CHUNK_BYTES]
                    self.wire.write("audio-chunk", sound_format, sound)

    def _say(self, problem: Problem) -> None:
        event = error_of(problem)
        self.wire.write(event.type, event.data)

    def _try_to_say(self, problem: Problem) -> None:
        try:
            self._say(problem)
        except OSError:
            pass  # It has left.


def error_of(problem: Problem) -> Event:
    """Not kept as it is: an exception holds on to all that was at hand where it was raised."""
    text, after_s = problem.detail, problem.retry_after_s
    data: dict[str, Any] = {"text": text, "code": str(problem.status)}
    if after_s is not None:
        data["retry_after_seconds"] = after_s
        if "again" not in text:
            data["text"] = f"{text.rstrip('.')}. Try again in {after_s} s."
    return Event("error", data)


def text_in(data: dict[str, Any]) -> dict[str, Any]:
    """The one field that is called the same here."""
    return {"text": data["text"]} if "text" in data else {}
