"""The load harness hears what was played: known gaps, delays and failures are found as they are."""

import asyncio
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_service import summary
from benchmarks.playback import Playback, continuity
from benchmarks.soak import fit
from benchmarks.sse_client import Broken, Events, Heard, Unchunked, listen, post
from benchmarks.traffic import MIXED, Goal, arrivals, burst, text_of, users
from tests.scripted_server import (
    DONE,
    END,
    ScriptedServer,
    Step,
    accepted,
    chunk,
    chunked,
    event,
    head,
)
from tests.stack import closed_port

# What a busy machine may add between sending and hearing, at least once in so many times.
SLACK_S = 0.3
TIMES = 3


def hear(*steps: Step, limit_s: float = 30.0) -> Heard:
    with ScriptedServer(steps) as server:
        return asyncio.run(listen(server.port, post({"text": "Hello."}), limit_s=limit_s))


BEGIN = Step(0, head() + chunked(accepted(3)))


def test_a_gap_of_known_length_is_found() -> None:
    steps = (
        BEGIN,
        Step(0.2, chunked(chunk(0, seconds=0.3))),
        Step(0.8, chunked(chunk(1, seconds=55.0))),  # half a second too late
        Step(0.1, chunked(chunk(2, seconds=1.0)) + chunked(DONE) + END),
    )
    wrong_s = []
    for _ in range(TIMES):
        with ScriptedServer(steps) as server:
            heard = asyncio.run(listen(server.port, post({"text": "Hello."})))
            _, first, second, _ = server.sent_at
        assert not heard.error
        assert heard.total == heard.whole == 3
        assert heard.playback.audio_s == pytest.approx(56.3)
        assert heard.first_s is not None and len(heard.playback.silences) == 1
        gap_s = second - first - 0.3
        wrong_s.append(
            max(
                abs(heard.first_s - (first - heard.intended_at)),
                abs(heard.playback.worst_s - gap_s),
            )
        )
    assert min(wrong_s) < SLACK_S


def test_sound_that_comes_early_makes_no_gap_however_it_is_cut() -> None:
    whole = b"".join(chunked(chunk(index, seconds=60.0)) for index in range(3))
    heard = hear(BEGIN, Step(0.1, whole + chunked(DONE) + END, pieces=37))
    assert not heard.error and heard.whole == 3
    assert heard.playback.worst_s == 0


def test_a_chunk_counts_from_its_last_byte() -> None:
    first = chunked(chunk(0, seconds=1.0))
    heard = hear(
        BEGIN,
        Step(0, first[:-100]),
        Step(0.4, first[-100:] + chunked(chunk(1, 1.0)) + chunked(chunk(2, 1.0))),
        Step(0, chunked(DONE) + END),
    )
    assert heard.first_s is not None and heard.first_s >= 0.4


def test_slices_play_as_they_come_and_count_as_one_chunk() -> None:
    def piece(seconds: float, is_last: str) -> bytes:
        facts = f'"n_samples": {round(seconds * 1000)}, "sample_rate": 1000'
        return chunked(event("chunk", f'{{{facts}, "is_last_slice": {is_last}}}'))

    gaps = []
    for _ in range(TIMES):
        heard = hear(
            Step(0, head() + chunked(accepted(1))),
            Step(0, piece(0.2, "false")),
            Step(0.6, piece(1.0, "true") + chunked(DONE) + END),
        )
        assert not heard.error and (heard.whole, heard.playback.pieces) == (1, 2)
        gaps.append(heard.playback.worst_s)
    assert min(abs(gap - 0.4) for gap in gaps) < SLACK_S


def test_waiting_counts_from_when_it_was_meant_to_ask() -> None:
    async def late(port: int) -> Heard:
        meant = asyncio.get_running_loop().time() - 3.0
        return await listen(port, post({}), intended_at=meant)

    sound = b"".join(chunked(chunk(index, 1.0)) for index in range(3)) + chunked(DONE) + END
    with ScriptedServer([BEGIN, Step(0, sound)]) as server:
        waits = [asyncio.run(late(server.port)).first_s or 0.0 for _ in range(TIMES)]
    assert 3.0 <= min(waits) < 3.0 + SLACK_S


@pytest.mark.parametrize(
    "steps, told",
    [
        ([Step(0, head() + chunked(accepted(3)) + chunked(chunk(0, 1)) + END)], "without done"),
        ([Step(0, head() + chunked(accepted(3)) + chunked(chunk(0, 1)) + chunked(DONE) + END)],
         "1 chunks instead of 3"),
        ([Step(0, head() + chunked(b'event: error\ndata: {"detail": "no"}\n\n'))], '"no"'),
        ([Step(0, head() + chunked(accepted(3)))], "closed by the server"),
        ([Step(0, b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nwhat")], "HTTP 500: what"),
        ([Step(0, head() + b"xyz\r\n")], "no size of a chunk"),
    ],
)  # fmt: skip
def test_what_is_not_a_whole_stream_has_failed(steps: list[Step], told: str) -> None:
    heard = hear(*steps, limit_s=30.0)
    assert told in heard.error
    assert heard.worst_s is None and not heard.is_refused


def test_a_stream_that_falls_silent_has_failed() -> None:
    heard = hear(BEGIN, Step(2.0, b""), limit_s=0.5)
    assert "silent for 0.5 s" in heard.error and heard.worst_s is None


def test_a_refusal_is_told_from_a_failure() -> None:
    heard = hear(Step(0, b"HTTP/1.1 429 Later\r\nRetry-After: 3\r\n\r\n{}"))
    assert heard.is_refused and heard.error and heard.retry_after_s == 3


def test_nobody_there_is_a_failure_and_no_exception() -> None:
    with closed_port() as port:
        assert "cannot connect" in asyncio.run(listen(port, post({}))).error


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(0, 2**32))
def test_the_stream_is_understood_wherever_it_is_cut(cuts: list[int], seed: int) -> None:
    draw = random.Random(seed)
    names = [b"event: a\ndata: 1", b": heartbeat", b"event: b\ndata: " + b"x" * 500]
    stream = b"".join(name + b"\n\n" for name in names)
    # The server's own chunks are cut anywhere, and so is what the socket gives.
    sizes, at, coded = [], 0, b""
    while at < len(stream):
        size = draw.randint(1, 200)
        coded += chunked(stream[at : at + size])
        at += size
    coded += END
    body, events, found = Unchunked(), Events(), []
    while coded:
        size = cuts[len(sizes) % len(cuts)]
        sizes.append(size)
        for part in body.feed(coded[:size]):
            found += events.feed(bytes(part))
        coded = coded[size:]
    assert found == names
    assert body.is_over


def test_a_bad_size_is_refused() -> None:
    with pytest.raises(Broken):
        Unchunked().feed(b"5 bytes\r\nhello\r\n")


def test_silences_are_added_where_they_were() -> None:
    playback = Playback()
    for now, seconds in ((10.0, 1.0), (11.5, 2.0), (12.0, 1.0), (14.75, 1.0)):
        playback.arrive(now, seconds)
    assert playback.silences == [0.5, 0.25]  # silent from 11 to 11.5 and from 14.5 to 14.75
    assert playback.worst_s == 0.5


def test_continuity_counts_a_failed_stream_as_one_that_is_not_gapless() -> None:
    worst = [0.0, 0.04, 0.2, None]
    assert [continuity(worst, bound) for bound in (0, 0.05, 0.1, 0.2)] == [25, 50, 50, 75]


def stream_of(
    total: int, arrivals: list[tuple[float, float]], error: str = "", status: int = 200
) -> Heard:
    heard = Heard("", intended_at=100.0, total=total, status=status, error=error)
    for now, seconds in arrivals:
        heard.playback.arrive(now, seconds)
    heard.ended_at = arrivals[-1][0] if arrivals else 101.0
    return heard


def test_the_summary_counts_everybody() -> None:
    heard = [
        stream_of(2, [(100.5, 1.0), (101.0, 1.0)]),
        stream_of(2, [(100.5, 1.0), (103.0, 1.0)]),
        stream_of(1, [(100.5, 1.0)]),
        stream_of(0, [], error="cannot connect"),
        stream_of(0, [], error="HTTP 429", status=429),
    ]
    found = summary(heard)
    assert (found["streams"], found["failed"], found["refused"]) == (5, 1, 1)
    # Of four that have several chunks, or never said how many, one played without a gap.
    assert found["c0"] == pytest.approx(100 / 4)
    assert found["admitted_c50"] == pytest.approx(100 / 3)
    assert found["underrun_max_s"] == pytest.approx(1.5)
    assert found["first_p50_ms"] == pytest.approx(500)
    assert found["audio_s_per_s"] == pytest.approx(5 / 3)


# -- traffic -----------------------------------------------------------------------------------


SOUND = b"".join(chunked(chunk(index, 0.2, 100)) for index in range(3)) + chunked(DONE) + END


def test_arrivals_keep_their_moments_while_the_server_is_slow() -> None:
    with ScriptedServer([BEGIN, Step(1.0, SOUND)]) as server:
        heard = asyncio.run(arrivals(Goal(server.port), 20, 1.0, {"Hello.": 1}))
    spread = max(one.intended_at for one in heard) - min(one.intended_at for one in heard)
    assert 8 <= len(heard) <= 35 and spread < 1.0
    assert all(one.first_s is not None and one.first_s >= 1.0 for one in heard)


def test_users_listen_to_the_end_before_they_ask_again() -> None:
    with ScriptedServer([BEGIN, Step(0, SOUND)]) as server:
        heard = asyncio.run(users(Goal(server.port), 1, 0.0, 6.0, {"Hello.": 1}, think_s=0.0))
    times = [one.intended_at for one in heard]
    assert len(times) >= 2
    for before, after in zip(times, times[1:], strict=False):
        assert after - before >= 0.6, "each stream holds 0.6 s of sound"


def test_a_burst_asks_at_one_moment_for_different_sound() -> None:
    with ScriptedServer([BEGIN, Step(0, SOUND)]) as server:
        heard = asyncio.run(burst(Goal(server.port), 20))
    assert len({one.intended_at for one in heard}) == 1 and len(server.requests) == 20
    body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert "seed" not in body, "equal requests could be answered from a cache"


def test_texts_are_as_long_as_they_should_be() -> None:
    assert sum(MIXED.values()) == 100
    for characters in (60, 700, 45_000):
        text = text_of(characters)
        assert characters <= len(text) < characters + 100 and text.endswith(".")


# -- the line through a soak -------------------------------------------------------------------


def test_a_leak_is_seen_through_noise_and_noise_is_no_leak() -> None:
    draw = random.Random(5)
    times = list(range(900))
    noise = [200e6 + draw.gauss(0, 2e6) for _ in times]
    assert not fit(times, noise).is_growth
    leaking = [value + 20e3 * at for at, value in zip(times, noise, strict=True)]
    line = fit(times, leaking)
    assert line.is_growth and line.slope == pytest.approx(20e3, rel=0.2)
