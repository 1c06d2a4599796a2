"""The routes of a long job as an audiobook: its chapters and its M4B file."""

import threading
import time
import unicodedata
from pathlib import Path
from urllib.parse import quote

from flask import Blueprint, Response, jsonify
from werkzeug.wrappers import Response as AnyResponse

from app.errors import Problem
from app.hangup import if_client_leaves
from app.job_routes import entries_of, find_job, not_yet, stored
from app.job_sound import whole_file
from app.jobs import speech
from tasks.books import BOOK, Book, Making, chapters
from tasks.celery import send_book
from tasks.messages import Job, Kind, State

book_routes = Blueprint("books", __name__)

# Proxies often wait for a minute. An hour of sound takes most of one.
WAIT_S = 50.0
# Where others are made first nothing remembers who waits.
ASK_EVERY_S = 2.0
LOOK_EVERY_S = 0.2


@book_routes.get("/jobs/<job_id>/chapters")
def job_chapters(job_id: str) -> Response:
    job, pieces = find_job(job_id)
    book = Book.load(speech().files.folder(job_id))
    rate = job.sample_rate
    listed = [
        {
            "title": chapter.title,
            "chunk_index": chapter.index,
            "start_seconds": None if chapter.start is None else round(chapter.start / rate, 3),
            "end_seconds": None if chapter.end is None else round(chapter.end / rate, 3),
        }
        for chapter in chapters(pieces, entries_of(job, pieces))
    ]
    return jsonify(job_id=job_id, title=book.title, author=book.author, chapters=listed)


@book_routes.get("/jobs/<job_id>/book")
def job_book(job_id: str) -> AnyResponse:
    """The M4B, made when it is asked for the first time."""
    job, _ = find_job(job_id)
    if job.kind is not Kind.LONG:
        raise Problem(409, "Only long jobs become books; this is a stream.", state=job.state.value)
    if job.state is not State.DONE:
        raise not_yet(job, "its book can be made once it is done")
    folder = speech().files.folder(job_id)
    if not (folder / BOOK).exists():
        stored(job)[0].close()
    _wait_for(job, folder / BOOK)
    try:
        file = (folder / BOOK).open("rb")
    except FileNotFoundError:
        raise Problem(410, "The book of this job is no longer kept.") from None
    size = (folder / BOOK).stat().st_size
    response = whole_file(file, size, f"{job_id}-book", "audio/mp4")
    names = file_names(Book.load(folder).title, job_id)
    response.headers.set("Content-Disposition", "attachment", **names)
    return response


def file_names(title: str, job_id: str) -> dict[str, str]:
    """The name for all clients, and as it is for those that read RFC 8187. Headers are ASCII."""
    name = title.replace("/", "-")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    names = {"filename": f"{plain.replace('/', '-').strip() or job_id}.m4b"}
    if plain != name:
        names["filename*"] = f"UTF-8''{quote(name, safe='')}.m4b"
    return names


def _wait_for(job: Job, path: Path) -> None:
    """Return when the book is there.

    Raises:
        Problem: 503 with what keeps it, or how far it is; 404 when the job is deleted, 409 when
            the client has left.
    """
    making, left = Making(speech().store.redis, job.job_id), threading.Event()
    asked_at, began_at = float("-inf"), time.monotonic()
    with if_client_leaves(left.set):
        while not path.exists():
            now = time.monotonic()
            if now - asked_at >= ASK_EVERY_S:
                if not path.parent.exists():
                    raise Problem(404, "The job has been deleted meanwhile.")
                share, error = making.read()
                if error:
                    # Told once: whoever asks again has another try.
                    making.forget()
                    raise Problem(503, f"The book cannot be made: {error}.", retry_after_s=10)
                if now - began_at >= WAIT_S or now > speech().stops_at:
                    detail = f"The book is being made, {share:.0%} so far; ask again."
                    raise Problem(503, detail, retry_after_s=5)
                send_book(job.job_id)
                asked_at = now
            if left.wait(LOOK_EVERY_S):
                raise Problem(409, "The client has left.", job_id=job.job_id)
