"""Captions say exactly when each chunk is heard, and share its time among its lines."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.captions import Cue, as_srt, as_vtt, cues
from tasks.jobsound import Entry, read_index
from tasks.messages import Piece, SpeechRequest
from tests.stack import Stack
from tests.test_jobs import done, long_text, submit

RATE = 44_100
WORDS = st.lists(st.text("abcdé.,!1", min_size=1, max_size=12), min_size=1, max_size=60)


def a_request(language: str = "en") -> SpeechRequest:
    return SpeechRequest("", 0, "M1", language, 2, 1.05, 0, 0.3)


@given(st.lists(st.tuples(WORDS, st.integers(4_000, 900_000), st.integers(0, 50_000)), min_size=1))
def test_lines_fill_each_chunk_and_keep_every_word(
    chunks: list[tuple[list[str], int, int]],
) -> None:
    pieces, entries = [], []
    for words, n_samples, pause in chunks:
        pieces.append(Piece(" ".join(words), pause / RATE))
        entries.append(Entry(entries[-1].end if entries else 0, n_samples, pause))
    found = list(cues(pieces, entries, RATE, a_request()))
    assert all(len(cue.text) <= 84 and cue.start_s <= cue.end_s for cue in found)
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in zip(found, found[1:], strict=False))
    # Exact at both ends of every chunk, whatever is inside.
    starts, ends = {cue.start_s for cue in found}, {cue.end_s for cue in found}
    assert {entry.start / RATE for entry in entries} <= starts
    assert {(entry.start + entry.n_samples) / RATE for entry in entries} <= ends
    said = " ".join(cue.text for cue in found).split()
    assert "".join(said) == "".join(word for words, _, _ in chunks for word in words)


def test_a_long_line_has_its_share_of_the_time() -> None:
    text = "A short one, that is. " + "This one is much longer than the other, as one can see here."
    found = list(cues([Piece(text * 2, 0.0)], [Entry(RATE, 10 * RATE, 0)], RATE, a_request()))
    assert len(found) > 1 and (found[0].start_s, found[-1].end_s) == (1.0, 11.0)
    pace = [len(cue.text) / (cue.end_s - cue.start_s) for cue in found]
    assert max(pace) < 1.5 * min(pace)


def test_what_cannot_be_shared_evenly_goes_to_the_last_line() -> None:
    line = "These are eighty characters or a few less, so that no two fit in one caption, ok."
    found = list(cues([Piece(f"{line} {line} {line}", 0.0)], [Entry(0, 100, 0)], 100, a_request()))
    assert [cue.end_s for cue in found] == [0.33, 0.66, 1.0]


def test_korean_lines_are_short() -> None:
    text = "안녕하세요 저는 이 책을 소리 내어 읽고 있습니다 " * 4
    found = cues([Piece(text.strip(), 0.0)], [Entry(0, RATE, 0)], RATE, a_request("ko"))
    assert all(len(cue.text) <= 32 for cue in found)


def test_marks_of_the_formats_are_no_marks_in_the_text() -> None:
    lines = [Cue(3599.9996, 3661.25, "a <b> & c --> d")]
    assert "".join(as_vtt(iter(lines))) == (
        "WEBVTT\n\n01:00:00.000 --> 01:01:01.250\na &lt;b&gt; &amp; c --&gt; d\n"
    )
    assert "".join(as_srt(iter(lines))) == ("1\n01:00:00,000 --> 01:01:01,250\na <b> & c → d\n\n")


def test_a_job_has_captions_that_fit_its_sound(server: Stack) -> None:
    job_id = submit(server, 2000, seed=3)
    early = server.get(f"/jobs/{job_id}/captions")
    assert early.status_code in (200, 409)
    job = done(server, job_id)
    answer = server.get(job["links"]["captions"])
    assert answer.headers["Content-Type"] == "text/vtt; charset=utf-8"
    times = re.findall(r"^(\d\d:\d\d:\d\d\.\d{3}) --> (\d\d:\d\d:\d\d\.\d{3})$", answer.text, re.M)
    entries = read_index(server.data_dir / "jobs" / job_id)
    wanted = [entry.start / job_rate(server) for entry in entries]
    starts = [seconds(start) for start, _ in times]
    for start in wanted:
        assert min(abs(start - other) for other in starts) <= 0.0006
    assert seconds(times[-1][1]) <= job["duration_seconds"] + 0.001
    lines = re.findall(r"-->.*\n(.*)\n", answer.text)
    assert " ".join(lines).split() == long_text(2000).split()
    srt = server.get(f"/jobs/{job_id}/captions?format=srt")
    assert srt.headers["Content-Type"].startswith("application/x-subrip")
    assert len(re.findall(r"^\d+$", srt.text, re.M)) == len(times)


def job_rate(server: Stack) -> int:
    return int(server.get("/").json()["model"]["sample_rate"])


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_a_stream_has_captions_too(server: Stack) -> None:
    body = {"text": "One sentence. And another one, that is a bit longer.", "resumable": True}
    answer = server.post("/synthesize/stream", body)
    job_id = answer.headers["X-Job-Id"]
    text = server.get(f"/jobs/{job_id}/captions").text
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> ") and "And another one" in text


@pytest.mark.parametrize("query", ["format=ass", "partial=perhaps"])
def test_captions_nobody_has_are_refused(server: Stack, query: str) -> None:
    job_id = submit(server, 100)
    answer = server.get(f"/jobs/{job_id}/captions?{query}")
    assert answer.status_code == 422 and query.split("=")[0] in answer.json()["detail"]
