"""Speech for Home Assistant: a server for the Wyoming protocol, ``python -m app.wyoming``.

A process of its own beside the web, and like it only a client of the queue: it has no model. What
is said on a connection is in ``app/wyoming_talk.py``, what voices there are in
``app/wyoming_voices.py``, how events are read and written in ``app/wyoming_wire.py``.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

from app.counting import send_figures
from app.fields import check_language
from app.jobs import Speech
from app.limits import SpeechLimit
from app.wyoming_talk import Conversation
from supertonic.memory import give_back_every, reuse_large_buffers
from tasks.events import connect
from tasks.logs import facts, set_up
from tasks.settings import Settings, SettingsError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What is being spoken gets this long to end when the server is stopped, and to say that it does.
STOP_S, LAST_WORDS_S = 8.0, 2.0
ACCEPT_AGAIN_S = 0.1
GIVE_BACK_S = 60.0
BACKLOG = 128
HOME = "127.0.0.1"
LOCAL = (HOME, "::1", "localhost")

logger = logging.getLogger("app.wyoming")


class Server:
    """Takes connections, as many as the settings allow, each with threads of its own."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        client = connect(settings.redis_url)
        self.speech = Speech.over(client, settings)
        self._limit = SpeechLimit(settings.rate_limit, client)
        self._listener = listener
        self._conversations: dict[threading.Thread, Conversation] = {}
        self._lock = threading.Lock()
        self._is_stopping = False

    def serve(self) -> None:
        """Take connections until ``stop``."""
        while not self._is_stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if not self._is_stopping:
                    # Too many files are open: later there may be fewer.
                    logger.warning("could not take a connection: %s", error)
                    time.sleep(ACCEPT_AGAIN_S)
                continue
            try:
                self._take(sock)
            except OSError as error:
                logger.info("a client has left at once: %s", error)
                sock.close()
            except RuntimeError as error:
                # There are no more threads to be had.
                logger.warning("could not keep a connection: %s", error)
                sock.close()

    def stop(self) -> None:
        """Take no more connections and end those there are; returns in bounded time."""
        self._is_stopping = True
        self.speech.stops_at = time.monotonic() + STOP_S
        give_up_at = self.speech.stops_at + LAST_WORDS_S
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            conversations = dict(self._conversations)
        for conversation in conversations.values():
            conversation.stop()
        for thread in conversations:
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def _take(self, sock: socket.socket) -> None:
        conversation = Conversation(sock, self.speech, self._limit)
        most = self.speech.settings.wyoming_connections
        thread = threading.Thread(target=self._run, args=(conversation,), daemon=True)
        with self._lock:
            is_full = len(self._conversations) >= most
            if not is_full:
                # Who stops the server waits for those that have started, and for no others.
                thread.start()
                self._conversations[thread] = conversation
        if is_full:
            detail = f"All {most} connections (SUPERTONIC_WYOMING_CONNECTIONS) are taken."
            conversation.refuse(detail)

    def _run(self, conversation: Conversation) -> None:
        try:
            conversation.run()
        except Exception:
            # The last line of defence: one connection's trouble is nobody else's.
            logger.exception("unexpected error")
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            del self._conversations[thread]


def listen(settings: Settings) -> socket.socket:
    """Raises OSError: the address cannot be listened on."""
    host, port = settings.wyoming_host or HOME, settings.wyoming_port
    is_v6 = ":" in host
    listener = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_v6 else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
    )
    logger.info("listening", extra=facts(host=host, port=port))
    if host not in LOCAL:
        logger.warning(
            "Wyoming knows no keys: whoever reaches port %d of %s can have texts spoken "
            "(docs/home-assistant.md).",
            port,
            host,
        )
    return listener


def main() -> int:
    try:
        settings = Settings.from_env()
        set_up(settings, "wyoming")
        check_language(settings)
        # Before any thread is started: they all leave these to the main one.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        server = Server(settings, listen(settings))
    except SettingsError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except OSError as error:
        print(
            f"Stopped: cannot listen on {settings.wyoming_address} ({error.strerror}); "
            "stop what runs there, or choose another SUPERTONIC_WYOMING_PORT",
            file=sys.stderr,
        )
        return 1
    reuse_large_buffers()
    give_back_every(GIVE_BACK_S)
    send_figures(server.speech)
    threading.Thread(target=server.serve, name="accept", daemon=True).start()
    signal.sigwait(STOP_SIGNALS)
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
