"""A long text with titles becomes an audiobook whose chapters begin where they are heard."""

import io
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from app.books import file_names
from app.chapters import FIRST, cut_chapters, has_titles, title_of
from app.errors import Problem
from app.schemas import LongBody
from app.submit import cut
from supertonic.lexicon import Entries, Lexicon
from tasks.books import Book, Chapter, chapters
from tasks.jobfiles import JobFiles
from tasks.jobsound import Entry
from tasks.m4b import PARTIAL
from tasks.messages import Kind, Piece, State
from tasks.settings import Settings
from tests.examples import a_job
from tests.sse import SAMPLE_RATE, samples_of
from tests.stack import Stack, fill, wait_for
from tests.test_jobs import done

BOOK = """\
This stands before the first chapter.

# The First   Chapter #
It has two sentences. Here is the other one.

## Learn C#
#hashtags and C# are no titles. # Neither is this.
####### nor this
# ***
# 제2장
The end.
"""


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# One", "One"),
        ("###### Six deep ##", "Six deep"),
        ("#\tA tab\r", "A tab"),
        ("# C#", "C#"),
        ("#One", ""),
        ("####### Seven", ""),
        (" # Indented", ""),
        ("# ", ""),
        ("#", ""),
        ("# ***", ""),
        ("", ""),
    ],
)
def test_a_title_is_a_line_with_signs_and_a_space(line: str, title: str) -> None:
    assert title_of(line) == title


def test_a_text_is_cut_at_its_titles() -> None:
    found = list(cut_chapters(BOOK))
    assert [each.title for each in found] == [FIRST, "The First Chapter", "Learn C#", "제2장"]
    assert found[1].text.startswith("The First Chapter\n\nIt has two")
    assert "# ***" in found[2].text
    assert cut_chapters(BOOK, "My Book")[0].title == "My Book"
    assert [each.title for each in cut_chapters("\ufeff# One\nText.")] == ["One"]
    assert has_titles("\ufeff# One") and not has_titles("\n#One")
    (long,) = cut_chapters("# " + "a" * 300)
    assert len(long.title) == 200 and "a" * 300 in long.text
    assert cut_chapters("***\n\n[pause 1s]\n# [pause 2s]") == []
    (odd,) = cut_chapters("# [pause 1s] One\x00\u202e\u00a0👨\u200d👩")
    assert odd.title == "One 👨\u200d👩"
    (only,) = cut_chapters("[pause 1s]\n# One [pause 2s] more\nText.")
    assert only.title == "One more" and "[pause 2s]" in only.text


@given(st.lists(st.sampled_from(["# A title", "Some words.", "", "#none", "***"]), max_size=12))
def test_no_word_is_lost_between_chapters(lines: list[str]) -> None:
    found = list(cut_chapters("\n".join(lines)))
    said = " ".join(each.text for each in found).replace("***", "").split()
    assert said == " ".join(lines).replace("# A", "A").replace("***", "").split()


def test_chapters_are_known_as_far_as_the_sound_is_there() -> None:
    pieces = [
        Piece("a", 0, "", "One"),
        Piece("b", 0),
        Piece("c", 0, "", "Two"),
        Piece("d", 0, "", "Three"),
    ]
    entries = [Entry(0, 90, 10), Entry(100, 50, 0), Entry(150, 5, 5)]
    assert list(chapters(pieces, entries)) == [
        Chapter("One", 0, 0, 150),
        Chapter("Two", 2, 150, 160),
        Chapter("Three", 3, None, None),
    ]
    assert list(chapters([Piece("a", 0)], entries)) == []


def submit(server: Stack, **body: Any) -> str:
    answer = server.post("/synthesize/long", {"text": BOOK, "chapters": True} | body)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


def test_a_book_has_its_chapters_where_they_are_heard(server: Stack) -> None:
    job_id = submit(server, title="Töne & Co/2 ", author="Ann\u00a0", seed=3, chapter_pause_s=2.0)
    job = done(server, job_id)
    listed = server.get(job["links"]["chapters"]).json()
    assert (listed["title"], listed["author"]) == ("Töne & Co/2", "Ann")
    marks = listed["chapters"]
    titles = ["Töne & Co/2", "The First Chapter", "Learn C#", "제2장"]
    assert [mark["title"] for mark in marks] == titles
    assert marks[0]["start_seconds"] == 0 and marks[0]["chunk_index"] == 0
    spoken = samples_of(server.get(job["links"]["audio"]).content)
    for mark in marks[1:]:
        # Two seconds of silence before each, and then somebody speaks.
        at = round(mark["start_seconds"] * SAMPLE_RATE)
        assert not spoken[at - 2 * SAMPLE_RATE + 50 : at - 50].any()
        assert np.abs(spoken[at : at + SAMPLE_RATE // 2].astype(int)).max() > 500
    assert marks[-1]["end_seconds"] == pytest.approx(len(spoken) / SAMPLE_RATE, abs=0.001)
    answer = server.get(job["links"]["book"])
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "audio/mp4"
    name = "attachment; filename=\"Tone & Co-2.m4b\"; filename*=UTF-8''T%C3%B6ne%20%26%20Co-2.m4b"
    assert answer.headers["Content-Disposition"] == name
    with av.open(io.BytesIO(answer.content)) as file:
        assert file.metadata["major_brand"] == "M4B "
        assert (file.metadata["title"], file.metadata["artist"]) == ("Töne & Co/2", "Ann")
        found = file.chapters()
        assert [each["metadata"]["title"] for each in found] == titles
        for each, mark in zip(found, marks, strict=True):
            start = float(each["start"] * each["time_base"])
            assert start == pytest.approx(mark["start_seconds"], abs=0.002)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert 0 <= len(heard) - len(spoken) < 1024
    both = [heard[: len(spoken)], spoken / 32_768]
    assert np.corrcoef(*both)[0, 1] > 0.95
    # Kept: the same file again, also in parts.
    again = server.get(job["links"]["book"], headers={"Range": "bytes=100-199"})
    assert (again.status_code, again.content) == (206, answer.content[100:200])


def test_only_finished_long_jobs_are_books(server: Stack) -> None:
    stream = server.post("/synthesize", {"text": "A short one."}).json()["job_id"]
    answer = server.get(f"/jobs/{stream}/book")
    assert answer.status_code == 409 and "Only long jobs" in answer.json()["detail"]
    assert server.get(f"/jobs/{stream}/chapters").json()["chapters"] == []
    with server.held():
        running = submit(server, text="# One\nHere are words.\n" * 400)
        answer = server.get(f"/jobs/{running}/book")
        assert answer.status_code == 409 and "once it is done" in answer.json()["detail"]
        last = server.get(f"/jobs/{running}/chapters").json()["chapters"][-1]
        assert (last["title"], last["start_seconds"], last["end_seconds"]) == ("One", None, None)
        server.delete(f"/jobs/{running}")
    assert server.get(f"/jobs/{'0' * 24}/book").status_code == 404


def test_a_text_without_titles_is_one_book_and_says_so(server: Stack) -> None:
    job = done(server, submit(server, text="No title here."))
    assert job["warnings"] == ["The text has no chapters: no line begins with # and a title"]
    plain = server.post("/synthesize/long", {"text": "# Not asked for.\nOr is it?"}).json()
    done(server, plain["job_id"])
    assert server.get(plain["links"]["chapters"]).json()["chapters"] == []
    with av.open(io.BytesIO(server.get(plain["links"]["book"]).content)) as file:
        assert file.chapters() == []


def test_chapters_know_pause_marks_and_the_lexicon(server: Stack) -> None:
    text = "# Of SQL\nThat is SQL. [pause 3s]\n\n# Two\nThe end. [pause 4s]"
    job_id = submit(server, text=text, lexicon={"SQL": "sequel"})
    job = done(server, job_id)
    marks = server.get(job["links"]["chapters"]).json()["chapters"]
    assert [mark["title"] for mark in marks] == ["Of SQL", "Two"]
    spoken = samples_of(server.get(job["links"]["audio"]).content)
    at = round(marks[1]["start_seconds"] * SAMPLE_RATE)
    assert not spoken[at - 3 * SAMPLE_RATE + 50 : at - 50].any()
    assert spoken[at - 3 * SAMPLE_RATE - 4000 : at - 3 * SAMPLE_RATE].any()
    assert not spoken[-4 * SAMPLE_RATE :].any() and spoken[-4 * SAMPLE_RATE - 4000 :].any()
    same = text.replace("SQL", "sequel")
    other = done(server, submit(server, text=same, seed=job["seed"]))
    again = samples_of(server.get(other["links"]["audio"]).content)
    # Maybe in other batches, which is a matter of when its chunks come to hand.
    assert np.abs(again.astype(int) - spoken).max() <= 1


def test_limits_hold_for_all_chapters_together() -> None:
    limits, lexicon = Settings(max_long_text_chars=1000), Lexicon(Entries({"b": "hello"}))
    body = LongBody(text="# b\n" + "b " * 50, chapters=True, language="en")
    _, pieces = cut(body, lexicon, limits)
    assert [piece.chapter for piece in pieces if piece.chapter] == ["b"]
    with pytest.raises(Problem, match="more than 1000 characters as the lexicon"):
        cut(body.model_copy(update={"text": body.text * 4}), lexicon, limits)
    with pytest.raises(Problem, match="has 2001 chapters; at most 2000"):
        cut(body.model_copy(update={"text": "# b\n" * 2001}), None, Settings())


def test_a_chapter_of_which_the_lexicon_leaves_nothing_is_left_out() -> None:
    lexicon = Lexicon(Entries({"One": "…", "Two": "…"}))
    body = LongBody(text="# One\n# Two\nHello.\n# One", chapters=True, end_pause_s=0.5)
    _, pieces = cut(body, lexicon, Settings())
    assert [(piece.chapter, piece.pause_s) for piece in pieces] == [("Two", 0.5)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"chapters": "yes"}, "chapters"),
        ({"title": "x" * 201}, "title"),
        ({"author": "a\nb"}, "author"),
        ({"title": "\ud800"}, "title"),
        ({"title": "a\u202eb"}, "title"),
        ({"chapter_pause_s": 4}, "chapter_pause_s"),
        ({"text": "# ***\n\n"}, "text"),
    ],
)
def test_mistakes_are_told(server: Stack, body: dict[str, Any], field: str) -> None:
    answer = server.post("/synthesize/long", {"text": BOOK, "chapters": True} | body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def a_long_sound(stack: Stack, seconds: int) -> str:
    """A job that is done, as the disk tells of it, without having to be spoken."""
    files, job_id = JobFiles(stack.data_dir), uuid.uuid4().hex[:24]
    pieces = [Piece("A minute.", 0.0, "", f"Chapter {n}") for n in range(seconds // 60)]
    job = a_job(job_id, len(pieces), Kind.LONG)
    files.save(replace(job, state=State.DONE, finished_at=time.time()), pieces)
    Book("A Long One").save(files.folder(job_id))
    noise = np.random.default_rng(0).normal(0, 3000, 60 * job.sample_rate).astype("<i2").tobytes()
    with files.record(job_id, pieces, job.sample_rate) as recorder:
        for index in range(len(pieces)):
            recorder.add(index, noise)
        recorder.finish()
    return job_id


@contextmanager
def making(stack: Stack, job_id: str) -> Iterator[Path]:
    """The folder of a job whose book somebody waits for, once it has begun to be made."""
    folder = stack.data_dir / "jobs" / job_id
    with ThreadPoolExecutor(1) as pool:
        pool.submit(requests.get, f"{stack.url}/jobs/{job_id}/book", timeout=120)
        wait_for(lambda: (folder / PARTIAL).exists() or (folder / "book.m4b").exists())
        yield folder


def test_who_makes_a_book_may_be_killed(stack: Stack) -> None:
    stack.start_all()
    job_id = a_long_sound(stack, 1800)
    with making(stack, job_id) as folder:
        stack.kill("files")
        assert not (folder / "book.m4b").exists()
        stack.start_files()
    book = wait_for(lambda: (r := stack.get(f"/jobs/{job_id}/book")).ok and r, 120)
    with av.open(io.BytesIO(book.content)) as file:
        assert len(file.chapters()) == 30
        assert float(file.streams.audio[0].duration * file.streams.audio[0].time_base) == 1800
    assert not (folder / PARTIAL).exists()


def test_a_book_is_made_though_redis_goes_away_meanwhile(stack: Stack) -> None:
    stack.start_all()
    job_id = a_long_sound(stack, 900)
    with making(stack, job_id) as folder:
        stack.kill("redis")
        wait_for(lambda: (folder / "book.m4b").exists(), 120)
        stack.start_redis()
    wait_for(lambda: stack.get(f"/jobs/{job_id}/book").status_code == 200)


def test_a_job_that_is_deleted_meanwhile_has_no_book(stack: Stack) -> None:
    stack.start_all()
    deleted, waiting = a_long_sound(stack, 1800), a_long_sound(stack, 60)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stack.get, f"/jobs/{deleted}/book")
        wait_for(lambda: (stack.data_dir / "jobs" / deleted / PARTIAL).exists(), 30)
        # The one that waits behind it is made when the other's room is free.
        second = pool.submit(requests.get, f"{stack.url}/jobs/{waiting}/book", timeout=60)
        assert requests.delete(f"{stack.url}/jobs/{deleted}", timeout=10).json()["deleted"]
        answer = first.result()
        assert answer.status_code == 404 and "deleted meanwhile" in answer.json()["detail"]
        assert second.result().status_code == 200
    assert "cannot be made" not in stack.log("files")
    assert not (stack.data_dir / "jobs" / deleted).exists()


def test_a_book_of_sound_that_is_gone_or_broken_is_refused_at_once(stack: Stack) -> None:
    stack.start_all()
    broken, gone = a_long_sound(stack, 60), a_long_sound(stack, 60)
    with (stack.data_dir / "jobs" / broken / "audio.wav").open("ab") as file:
        file.write(b"!")
    answer = stack.get(f"/jobs/{broken}/book")
    assert answer.status_code == 503 and "its sound cannot be read" in answer.json()["detail"]
    (stack.data_dir / "jobs" / gone / "audio.wav").unlink()
    answer = stack.get(f"/jobs/{gone}/book")
    assert answer.status_code == 410 and "no longer kept" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Tales", {"filename": "Tales.m4b"}),
        ("a/b", {"filename": "a-b.m4b"}),
        ("℀x", {"filename": "a-cx.m4b", "filename*": "UTF-8''%E2%84%80x.m4b"}),
        ("夢", {"filename": "id.m4b", "filename*": "UTF-8''%E5%A4%A2.m4b"}),
        ("", {"filename": "id.m4b"}),
    ],
)
def test_a_book_is_named_as_every_client_can_read(title: str, names: dict[str, str]) -> None:
    assert file_names(title, "id") == names


def test_closing_a_job_leaves_a_book_that_is_being_made(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    part = files.make_folder("job") / PARTIAL
    part.touch()
    files.drop_loose("job")
    assert part.exists()


def test_a_full_disk_is_named(stack: Stack, small: Path) -> None:
    stack.start_all()
    job_id = a_long_sound(stack, 60)
    filler = fill(small)
    answer = stack.get(f"/jobs/{job_id}/book")
    assert answer.status_code == 503 and "No space left" in answer.json()["detail"]
    assert not list((small / "jobs" / job_id).glob("book.m4b*"))
    filler.unlink()
    assert stack.get(f"/jobs/{job_id}/book").status_code == 200
