"""The server for Home Assistant, as the client of the protocol's own library meets it."""

import asyncio
import json
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeVoice,
)

from app.turns import MAX_TURNS
from app.wyoming import STOP_S
from tasks.events import EventStore
from tasks.messages import State
from tests.memory import Peaks, resident_bytes
from tests.stack import Stack, wait_for
from tests.test_queue_faults import begun_at
from tests.test_websocket import LONG_TEXT, SENTENCE

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole service on the built-in voice."""
    stack = Stack(tmp_path_factory.mktemp("wyoming"))
    try:
        stack.start_all()
        stack.start_wyoming()
        yield stack
    finally:
        stack.stop_all()


@pytest.fixture
def paced(stack: Stack) -> Stack:
    """A service whose pace is known; not started, for it may need other settings."""
    stack.env["PACE"] = "30"
    return stack


def start(stack: Stack, module: str = "app.wyoming") -> None:
    stack.start_redis()
    stack.start_worker(app="tests.paced_worker")
    stack.start_web()
    stack.wait_ready()
    stack.start_wyoming(module)


def talk(stack: Stack, *conversations: Callable[[AsyncTcpClient], Awaitable[Any]]) -> list[Any]:
    """What conversations come to that are held at once, each on a connection of its own."""

    async def on_connection(conversation: Callable[[AsyncTcpClient], Awaitable[Any]]) -> Any:
        async with AsyncTcpClient("127.0.0.1", stack.wyoming_port, read_timeout=LIMIT_S) as client:
            return await conversation(client)

    async def together() -> list[Any]:
        return await asyncio.gather(*map(on_connection, conversations))

    return asyncio.run(together())


async def heard(client: AsyncTcpClient, until: str) -> list[Event]:
    """Events up to one of this type."""
    events: list[Event] = []
    while not events or events[-1].type != until:
        event = await client.read_event()
        assert event is not None, f"the server hung up after {[e.type for e in events]}"
        events.append(event)
    return events


async def ask(client: AsyncTcpClient, text: str, **voice: str) -> list[Event]:
    """All that comes back for one text."""
    wanted = SynthesizeVoice(**voice) if voice else None
    await client.write_event(Synthesize(text=text, voice=wanted).event())
    return await heard(client, "audio-stop")


async def stream(client: AsyncTcpClient, *parts: str, **voice: str) -> list[Event]:
    """All that comes back for a stream that is sent as Home Assistant sends it."""
    wanted = SynthesizeVoice(**voice) if voice else None
    await client.write_event(SynthesizeStart(voice=wanted).event())
    for part in parts:
        await client.write_event(SynthesizeChunk(text=part).event())
    await client.write_event(Synthesize(text="".join(parts), voice=wanted).event())
    await client.write_event(SynthesizeStop().event())
    return await heard(client, "synthesize-stopped")


def kinds(events: list[Event]) -> list[str]:
    """Types in order, chunks that follow each other once."""
    found = [event.type for event in events]
    return [kind for before, kind in zip(["", *found], found, strict=False) if kind != before]


def samples_in(events: list[Event]) -> np.ndarray:
    sound = b"".join(AudioChunk.from_event(e).audio for e in events if e.type == "audio-chunk")
    return np.frombuffer(sound, "<i2").astype(int)


def errors_in(events: list[Event]) -> list[Error]:
    return [Error.from_event(event) for event in events if event.type == "error"]


def accepted(stack: Stack) -> list[str]:
    """Ids of the jobs so far."""
    return re.findall(r"app.jobs accepted job_id=(\w+)", stack.log("wyoming"))


@contextmanager
def raw(stack: Stack) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", stack.wyoming_port), timeout=20) as sock:
        yield sock


def line(kind: str, **data: Any) -> bytes:
    return json.dumps({"type": kind, "data": data}).encode() + b"\n"


def read_all(sock: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionResetError):
        while received := sock.recv(65_536):
            found += received
    return found


# -- what there is ---------------------------------------------------------------------------


def test_info_offers_every_voice_of_the_model_in_every_language(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> Info:
        await client.write_event(Describe().event())
        return Info.from_event((await heard(client, "info"))[-1])

    (info,) = talk(service, conversation)
    told = service.get("/voices").json()
    (program,) = info.tts
    assert program.supports_synthesize_streaming and program.installed and program.version
    assert [voice.name for voice in program.voices] == [voice["id"] for voice in told["voices"]]
    for voice in program.voices:
        assert voice.languages == ["en"] and voice.installed
        assert voice.version == told["model"]["fingerprint"]
        assert voice.attribution.name == program.attribution.name == "Supertonic server"


def test_a_voice_has_a_name_for_each_language(paced: Stack) -> None:
    """A client that names a voice cannot name a language beside it."""
    start(paced)

    async def conversation(client: AsyncTcpClient) -> None:
        await client.write_event(Describe().event())
        info = Info.from_event((await heard(client, "info"))[-1])
        by_name = {voice.name: voice.languages for voice in info.tts[0].voices}
        assert by_name["M1"] == ["en"] and by_name["M1-es"] == ["es"] and len(by_name) == 50
        for wanted, language in (
            ({"name": "F2-es"}, ("F2", "es")),
            ({"name": "F2"}, ("F2", "en")),
            ({"name": "M1+F2-ko"}, ("M1+F2", "ko")),
            ({"language": "pt-BR"}, ("M1", "pt")),
            ({"speaker": "F3", "language": "fr"}, ("F3", "fr")),
            ({}, ("M1", "en")),
        ):
            await client.write_event(Event("synthesize", {"text": "Hola.", "voice": wanted}))
            assert not errors_in(await heard(client, "audio-stop"))
            job = EventStore(paced.redis).job(accepted(paced)[-1])
            assert job is not None
            assert (job.request.voice, job.request.language) == language

    talk(paced, conversation)


def test_a_ping_is_answered_and_unknown_events_are_dropped(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        await client.write_event(Event("transcribe", {"language": "en"}))
        await client.write_event(Event("audio-chunk", {"rate": 16000}, b"\0" * 100_000))
        await client.write_event(Ping(text="still there?").event())
        pong = await client.read_event()
        assert pong is not None and Pong.from_event(pong).text == "still there?"

    talk(service, conversation)


# -- texts -----------------------------------------------------------------------------------


def test_a_text_has_the_samples_that_it_has_over_http(service: Stack) -> None:
    text = SENTENCE * 3
    (events,) = talk(service, lambda client: ask(client, text, name="F3"))
    assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
    job = EventStore(service.redis).job(accepted(service)[-1])
    assert job is not None
    begun = AudioStart.from_event(events[0])
    assert (begun.rate, begun.width, begun.channels) == (job.sample_rate, 2, 1)
    body = {"text": text, "voice": "F3", "seed": job.request.seed, "output_format": "wav"}
    wav = np.frombuffer(service.post("/synthesize", body).content[44:], "<i2").astype(int)
    samples = samples_in(events)
    assert samples.shape == wav.shape and np.abs(samples - wav).max() <= 1


def test_clients_are_served_at_once_and_a_connection_more_than_once(service: Stack) -> None:
    async def twice(client: AsyncTcpClient) -> list[int]:
        return [samples_in(await ask(client, text)).size for text in (SENTENCE, SENTENCE * 2)]

    for short, long in talk(service, *[twice] * 4):
        assert 20_000 < short < long


def test_texts_sent_at_once_are_spoken_one_after_the_other(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        for text in ("One.", "", "Two."):
            await client.write_event(Synthesize(text=text).event())
        for has_sound in (True, False, True):
            events = await heard(client, "audio-stop")
            assert bool(samples_in(events).size) is has_sound
            assert bool(errors_in(events)) is not has_sound

    talk(service, conversation)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"text": ""}, "text: "),
        ({"text": " \n"}, "text: "),
        ({"text": "Hi \ud800"}, "text: holds half of a surrogate pair"),
        ({"text": 5}, "text: must be a string"),
        ({}, "text: is required"),
        ({"text": "Hi.", "voice": {"name": "Nobody"}}, "voice: "),
        ({"text": "Hi.", "voice": {"name": ["M1"]}}, "voice: must be"),
        ({"text": "Hi.", "voice": "M1"}, "voice: must be an object"),
        ({"text": "Hi.", "voice": {"language": "de"}}, "language: must be one of en"),
        ({"text": "Hi.", "voice": {"name": "M1-es"}}, "voice: "),
        ({"text": "<speak/>", "text_format": "ssml"}, "text: nothing to say"),
        ({"text": "Hi.", "text_format": "html"}, "text_format: must be text or ssml"),
    ],
)
def test_what_is_wrong_is_told_and_the_next_text_is_spoken(
    service: Stack, data: dict[str, Any], told: str
) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        # The library could not write half of a surrogate pair.
        assert client._writer is not None
        client._writer.write(line("synthesize", **data))
        error, stop = await heard(client, "audio-stop")
        assert error.data["text"].startswith(told) and error.data["code"] == "422"
        assert samples_in(await ask(client, "Hello.")).size

    talk(service, conversation)


def test_without_a_worker_the_error_says_so(stack: Stack) -> None:
    stack.start_redis()
    stack.start_wyoming()
    (events,) = talk(stack, lambda client: ask(client, "Hello."))
    assert kinds(events) == ["error", "audio-stop"]
    assert "No speech worker is running" in events[0].data["text"]
    assert events[0].data["text"].endswith("Try again in 5 s.")
    assert (events[0].data["code"], events[0].data["retry_after_seconds"]) == ("503", 5)


# -- streams ---------------------------------------------------------------------------------


def test_a_sentence_is_heard_while_the_rest_is_being_written(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        await client.write_event(SynthesizeStart(voice=SynthesizeVoice(name="F1")).event())
        await client.write_event(SynthesizeChunk(text="The first sentence is here. The").event())
        early = await heard(client, "audio-stop")
        assert kinds(early) == ["audio-start", "audio-chunk", "audio-stop"]
        for text in (" second follows", ". And a", " third"):
            await client.write_event(SynthesizeChunk(text=text).event())
        await client.write_event(Synthesize(text="Not this.").event())
        await client.write_event(SynthesizeStop().event())
        events = early + await heard(client, "synthesize-stopped")
        assert not errors_in(events)
        store = EventStore(service.redis)
        told.extend(accepted(service)[before:])
        texts = [" ".join(piece.text for piece in store.pieces(job_id)) for job_id in told]
        assert " ".join(texts) == "The first sentence is here. The second follows. And a third"
        assert len(texts) == sum(event.type == "audio-stop" for event in events)

    before, told = len(accepted(service)), []
    talk(service, conversation)


def test_a_stream_ends_also_where_nothing_of_it_could_be_spoken(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        assert kinds(await stream(client)) == ["synthesize-stopped"]
        assert kinds(await stream(client, "😀")) == ["synthesize-stopped"]
        # Home Assistant knows no errors, and sends all of it whatever we say.
        for voice in ({"name": "Nobody"}, {"language": "de"}):
            events = await stream(client, "One sentence. ", "Another. ", "A third.", **voice)
            assert len(errors_in(events)) == 1 and not samples_in(events).size
        for start in ({"voice": 7}, {"text_format": "ssml"}):
            await client.write_event(Event("synthesize-start", start))
            await client.write_event(SynthesizeChunk(text="One. Two. Three. Four").event())
            await client.write_event(SynthesizeStop().event())
            events = await heard(client, "synthesize-stopped")
            assert kinds(events) == ["error", "synthesize-stopped"]
        assert samples_in(await stream(client, "And now", " this.")).size

    talk(service, conversation)


def test_parts_of_a_stream_that_has_not_begun_are_refused(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        for event in (SynthesizeChunk(text="Hi.").event(), SynthesizeStop().event()):
            await client.write_event(event)
            assert (
                "send a synthesize-start first" in (await heard(client, "error"))[-1].data["text"]
            )
        await client.write_event(SynthesizeStart().event())
        await client.write_event(SynthesizeStart().event())
        assert "send its synthesize-stop first" in (await heard(client, "error"))[-1].data["text"]
        await client.write_event(Event("synthesize-chunk", {"text": None}))
        assert (await heard(client, "error"))[-1].data["text"].startswith("text: must be a string")
        await client.write_event(SynthesizeStop().event())
        await heard(client, "synthesize-stopped")

    talk(service, conversation)


# -- clients that leave ----------------------------------------------------------------------


def test_nothing_more_is_spoken_for_a_client_that_has_left(paced: Stack) -> None:
    paced.env["PACE"] = "8"
    start(paced)
    paced.post("/config/batch", {"max_batch_size": 1})

    async def conversation(client: AsyncTcpClient) -> None:
        await client.write_event(Synthesize(text=LONG_TEXT).event())
        await client.write_event(Synthesize(text="Behind it.").event())
        await heard(client, "audio-chunk")

    talk(paced, conversation)
    (job_id,) = accepted(paced)
    store = EventStore(paced.redis)
    # Long before all of it would have been spoken.
    wait_for(lambda: store.job(job_id).state is State.CANCELLED, 10)
    job = store.job(job_id)
    assert job is not None and job.finished_at is not None
    # Others' chunks pass through batches meanwhile, where its own would have been.
    assert samples_in(talk(paced, lambda client: ask(client, SENTENCE * 6))[0]).size
    begun = begun_at(paced, job_id)
    assert 0 < len(begun) < job.count - 4 and all(at <= job.finished_at for at in begun)
    assert len(accepted(paced)) == 2, "what waited behind it was never begun"


def test_who_takes_nothing_and_who_says_nothing_is_dropped(paced: Stack) -> None:
    paced.env["PACE"] = "3000"
    start(paced, "tests.impatient_wyoming")
    before = threads_at_rest(paced)
    with raw(paced) as silent, raw(paced) as dribbling, raw(paced) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(5):
            slow.sendall(line("synthesize", text=LONG_TEXT * 2))
        assert silent.recv(1) == b""
        with pytest.raises(OSError):
            for _ in range(100):
                dribbling.sendall(b"{")
                time.sleep(0.1)
        wait_for(lambda: "takes nothing" in paced.log("wyoming"), 20)
        wait_for(lambda: n_threads(paced) <= before, 20, "nothing of them is left")
    store = EventStore(paced.redis)
    wait_for(lambda: {store.job(job).state for job in accepted(paced)} <= {"cancelled", "done"}, 20)


def threads_at_rest(stack: Stack) -> int:
    """How many there are without any connection, of which each has two."""
    with raw(stack) as sock:
        sock.sendall(line("ping"))
        assert b"pong" in sock.recv(100)
        with_one = n_threads(stack)
    wait_for(lambda: n_threads(stack) <= with_one - 2, what="those of the connection end")
    # Those of the one before it, which looked whether somebody answers, have to end as well.
    counts = []
    for _ in range(20):
        time.sleep(0.05)
        counts.append(n_threads(stack))
    return min(counts)


def n_threads(stack: Stack) -> int:
    return len(list(Path(f"/proc/{stack.processes['wyoming'].pid}/task").iterdir()))


def test_who_sends_and_does_not_read_fills_no_memory(paced: Stack) -> None:
    paced.env["PACE"] = "300"
    start(paced)
    pid = paced.processes["wyoming"].pid
    with raw(paced) as sock, Peaks({"wyoming": lambda: resident_bytes(pid)}) as peaks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(line("synthesize", text=LONG_TEXT))
        sock.settimeout(3)
        mistake = line("synthesize", text=["a" * 900_000])
        with pytest.raises(TimeoutError):
            for _ in range(400):
                sock.sendall(mistake)
        assert peaks.growth["wyoming"] < 60e6


# -- limits ----------------------------------------------------------------------------------


def test_what_is_no_event_ends_its_connection_with_the_reason(service: Stack) -> None:
    sent = {
        b"POST / HTTP/1.1\r\n\r\n": b"must be a JSON object",
        b"\xff\xfe\n": b"must be a JSON object",
        b"[" * 100_000 + b"\n": b"must be a JSON object",
        b"[]\n": b"must be a JSON object, not list",
        b"\n": b"must be a JSON object",
        b"{}\n": b"An event needs a type",
        b'{"type": 5}\n': b"An event needs a type",
        b'{"type": "ping", "data": "x"}\n': b"its data is an object",
        b'{"type": "ping", "data_length": -1}\n': b"must be a whole number of bytes",
        b'{"type": "ping", "data_length": "x"}\n': b"must be a whole number of bytes",
        b'{"type": "ping", "data_length": 4}\nnull': b"must be a JSON object, not NoneType",
        b'{"type": "ping", "data_length": 1000001}\n': b"larger than 1000000 bytes",
        b'{"type": "ping", "payload_length": 100000000000}\n': b"larger than 1000000 bytes",
        b"a" * 1_100_000: b"A line is larger than 1000000 bytes",
    }
    for text, reason in sent.items():
        with raw(service) as sock:
            sock.sendall(text)
            answer = read_all(sock)
            assert answer.startswith(b'{"type": "error"') and reason in answer, text[:50]
    with raw(service) as sock:
        sock.sendall(b'{"type": "synthesize", "data_length": 500}\n{"text": ')
    assert samples_in(talk(service, lambda client: ask(client, "Hello."))[0]).size
    assert "Traceback" not in service.log("wyoming")


def test_texts_that_wait_are_bounded(service: Stack) -> None:
    async def conversation(client: AsyncTcpClient) -> None:
        # The first is being spoken, a hundred wait, the errors of others take places: then no more.
        for _ in range(1 + MAX_TURNS + 20):
            await client.write_event(Synthesize(text="Hi.").event())
        for _ in range(20):
            told = (await heard(client, "error"))[-1].data["text"]
            assert told.startswith("Too many texts have ended")

    with service.held():
        talk(service, conversation)
    assert samples_in(talk(service, lambda client: ask(client, "Hello."))[0]).size


def test_who_finds_no_connection_is_told_so(stack: Stack) -> None:
    stack.env["SUPERTONIC_WYOMING_CONNECTIONS"] = "2"
    stack.start_redis()
    stack.start_wyoming()
    before = threads_at_rest(stack)
    wait_for(lambda: n_threads(stack) <= before)
    with ExitStack() as connected:
        for _ in range(2):
            sock = connected.enter_context(raw(stack))
            sock.sendall(line("ping"))
            assert b"pong" in sock.recv(100)
        with raw(stack) as third:
            answer = read_all(third)
            assert b"All 2 connections" in answer and b'"code": "503"' in answer
        sock.sendall(line("ping"))
        assert b"pong" in sock.recv(100)
    wait_for(lambda: n_threads(stack) <= before)
    with raw(stack) as sock:
        sock.sendall(line("ping"))
        assert b"pong" in sock.recv(100)


def test_at_too_much_load_a_text_is_refused_with_the_time_to_come_back(paced: Stack) -> None:
    paced.env |= {"PACE": "10", "SUPERTONIC_MAX_WAIT_S": "2"}
    start(paced)
    answers = talk(paced, *[lambda client: ask(client, SENTENCE * 4)] * 8)
    refused = [error for events in answers for error in events if error.type == "error"]
    assert 0 < len(refused) < 8, "those who were let in are spoken for"
    for error in refused:
        after_s = error.data["retry_after_seconds"]
        assert error.data["code"] == "429" and after_s >= 1
        assert f"Try again in {after_s} s." in error.data["text"]


def test_the_rate_limit_counts_texts_and_streams(stack: Stack) -> None:
    stack.env["SUPERTONIC_RATE_LIMIT"] = "3/minute"
    stack.start_redis()
    stack.start_worker()
    stack.start_web()
    stack.wait_ready()
    stack.start_wyoming()

    async def conversation(client: AsyncTcpClient) -> None:
        assert not errors_in(await ask(client, "One."))
        assert not errors_in(await stream(client, "Two. ", "And its second sentence."))
        assert not errors_in(await ask(client, "Three."))
        for events in (await ask(client, "Four."), await stream(client, "Five. ", "Six.")):
            (error,) = errors_in(events)
            assert error.code == "429" and "At most 3 requests" in error.text
            assert re.search(r"Try again in \d+ s\.$", error.text)

    talk(stack, conversation)


# -- its life --------------------------------------------------------------------------------


def test_it_stops_in_time_and_says_so_to_who_is_listening(paced: Stack) -> None:
    paced.env["PACE"] = "4"
    start(paced)
    found: list[Event] = []

    async def conversation(client: AsyncTcpClient) -> None:
        await client.write_event(Synthesize(text=LONG_TEXT).event())
        found.extend(await heard(client, "audio-start"))
        paced.processes["wyoming"].send_signal(signal.SIGTERM)
        while (event := await client.read_event()) is not None:
            found.append(event)

    with raw(paced) as idle:
        began = time.monotonic()
        talk(paced, conversation)
        assert paced.stop("wyoming") == 0
        assert time.monotonic() - began < 30, "the text alone takes a minute"
        assert idle.recv(1) == b""
    assert [event.type for event in found[-2:]] == ["error", "audio-stop"]
    assert "the server is being stopped" in found[-2].data["text"]


def test_an_idle_one_stops_at_once(stack: Stack) -> None:
    stack.start_redis()
    stack.start_wyoming()
    with raw(stack):
        began = time.monotonic()
        assert stack.stop("wyoming") == 0
        assert time.monotonic() - began < STOP_S, "nobody is given time to end"


def test_it_outlives_redis(paced: Stack) -> None:
    start(paced)

    async def conversation(client: AsyncTcpClient) -> None:
        assert not errors_in(await ask(client, "Hello."))
        paced.kill("redis")
        (error,) = errors_in(await ask(client, "Hello."))
        assert error.code == "503" and "Redis cannot be reached" in error.text
        (error,) = errors_in(await stream(client, "Hello. ", "Hello."))
        assert error.code == "503"
        described = None
        # Workers that were seen a moment ago are believed in.
        while described is None or described.type == "info":
            await client.write_event(Describe().event())
            described = await client.read_event()
        assert described.type == "error" and described.data["code"] == "503"
        paced.start_redis()
        paced.wait_ready()
        assert samples_in(await ask(client, "Hello again.")).size

    talk(paced, conversation)
    assert "Traceback" not in paced.log("wyoming")


def test_an_address_that_is_taken_is_told(stack: Stack) -> None:
    stack.start_redis()
    stack.start_wyoming()
    stack.start("second", sys.executable, "-m", "app.wyoming")
    assert stack.processes.pop("second").wait(30) == 1
    told = stack.log("second").splitlines()[-1]
    assert told.startswith(f"Stopped: cannot listen on 127.0.0.1:{stack.wyoming_port} (Address ")
