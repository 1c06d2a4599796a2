"""Long texts that come as files: EPUB, Markdown and plain text, as a form or as the body itself.

``read_long`` makes of any of them what a JSON body would be, so that all that follows is the same.
A file is held in memory, so only a few are read at a time.
"""

import io
import threading
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from flask import Request, current_app
from flask import request as current_request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.wsgi import get_input_stream

from app.archive import UnreadableBook
from app.charsets import Undecodable, decode
from app.epub import read_epub
from app.errors import Problem, field_problem, shorten
from app.fields import language_code
from app.jobs import speech
from app.offer import languages_of
from app.reading import discard_rest, parse_json, read_json, refuse_encoding, take_body
from app.schemas import LongBody
from app.slow import READING

EPUB, FORM = "application/epub+zip", "multipart/form-data"
TEXTS = ("text/plain", "text/markdown")
KINDS = (*TEXTS, EPUB, FORM)
SUFFIXES = ("", ".txt", ".text", ".md", ".markdown")
ENDINGS = "what is read are EPUB, Markdown and plain text (.epub, .md, .txt)"
ROUTE = "jobs.synthesize_long"
# Of a query, what is no option of the text.
OTHERS = {"wait", "api_key"}
ZIP, PDF = b"PK\x03\x04", b"%PDF-"
# Per process: what is read is in memory, and reading it takes the processor.
AT_ONCE = 4
WAIT_S = 5.0
# Who sends more slowly than this is held for a slow client (app/slow.py).
LEAST_BYTES_PER_S = 250_000
MAX_PARTS = 50

_turns = threading.BoundedSemaphore(AT_ONCE)


class Upload(NamedTuple):
    """A file as it came. ``field`` is ``file``, or ``body`` where it is all that came; then it has
    no ``name``.
    """

    data: bytes
    field: str
    name: str
    charset: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name.replace("\\", "/")).suffix.lower()


def take() -> None:
    """Before every request: read the body, unless it is a file, which the route reads in turn."""
    if current_request.endpoint == ROUTE and current_request.mimetype in KINDS:
        refuse_encoding()
    else:
        take_body()


def read_long(request: Request) -> Any:
    """The fields of a long job, from whichever body it came in, and from the query.

    Raises:
        Problem: 415 for another type, 413 for a file that is too large, 400 for a form that cannot
            be read, 422 for a file that is no book or options that are given twice, 503 when too
            many files are being read.
    """
    options = [pair for pair in request.args.items(multi=True) if pair[0] not in OTHERS]
    if request.mimetype not in KINDS:
        if request.mimetype != "application/json":
            got, kinds = request.mimetype or "none", ", ".join(KINDS)
            raise Problem(415, f"Content-Type is {got}; send application/json, or one of {kinds}.")
        data = read_json(request)
        # Queries of JSON requests were never read, so what is not known there does no harm.
        known = [pair for pair in options if pair[0] in LongBody.model_fields]
        return _joined(data, _values(known)) if isinstance(data, dict) else data
    _refuse_too_large(request)
    sock = request.environ.get("gunicorn.socket")
    READING.allow(sock, WAIT_S)
    if not _turns.acquire(timeout=WAIT_S):
        raise Problem(503, "Other files are being read; try again in a moment.", retry_after_s=5)
    try:
        # Only for those whose turn it is: many slow ones must not keep the threads.
        READING.allow(sock, _size(request) / LEAST_BYTES_PER_S)
        upload, more = _receive(request)
        given = _values([*options, *more])
        if "text" in given:
            raise field_problem("text", given["text"], "is in the file; leave it out")
        return _fields(upload) | given
    finally:
        _turns.release()


# -- receiving -------------------------------------------------------------------------------


def _too_large() -> Problem:
    limit = speech().settings.max_upload_bytes
    return Problem(413, f"The file is larger than {limit} bytes (SUPERTONIC_MAX_UPLOAD_BYTES).")


def _refuse_too_large(request: Request) -> None:
    """Before anything is read."""
    if _size(request) > speech().settings.max_upload_bytes:
        raise _too_large()


def _size(request: Request) -> int:
    """In bytes; the most that is allowed where a client does not tell."""
    size = request.content_length
    return speech().settings.max_upload_bytes if size is None else size


def _receive(request: Request) -> tuple[Upload, list[tuple[str, str]]]:
    """The file, and the fields that came with it."""
    limit = speech().settings.max_upload_bytes
    # One more: a body of exactly the limit is none too many.
    stream = get_input_stream(request.environ, max_content_length=limit + 1)
    try:
        if request.mimetype == FORM:
            return _form(request, stream)
        data = stream.read()
        if len(data) > limit:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        discard_rest()
        if stream.tell() > limit:
            raise _too_large() from None
        detail = f"The form has more than {MAX_PARTS} parts, or more than {_field_bytes()} bytes"
        raise Problem(413, f"{detail} in one that is no file.") from None
    finally:
        READING.end(request.environ.get("gunicorn.socket"))
    return Upload(data, "body", "", request.mimetype_params.get("charset", "")), []


def _field_bytes() -> int:
    return int(current_app.config["MAX_FORM_MEMORY_SIZE"])


def _form(request: Request, stream: Any) -> tuple[Upload, list[tuple[str, str]]]:
    parser = FormDataParser(
        # In memory: the limit above holds, and disks of containers may be small.
        stream_factory=_memory,
        max_form_memory_size=_field_bytes(),
        max_form_parts=MAX_PARTS,
        silent=False,
    )
    options = request.mimetype_params
    try:
        _, fields, files = parser.parse(stream, FORM, request.content_length, options)
    except ValueError as error:
        raise Problem(400, f"The form cannot be read: {shorten(str(error))}.") from None
    sent = list(files.items(multi=True))
    names = [name for name, _ in sent]
    if names != ["file"]:
        got = ", ".join(map(shorten, names)) or "none"
        detail = f"must be one file, as `curl -F file=@book.epub` sends it; files sent: {got}"
        raise field_problem("file", None, detail)
    file = sent[0][1]
    charset = file.mimetype_params.get("charset", "")
    upload = Upload(file.read(), "file", file.filename or "", charset)
    return upload, list(fields.items(multi=True))


def _memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> IO[bytes]:
    return io.BytesIO()


# -- what is in it ---------------------------------------------------------------------------


def _fields(upload: Upload) -> dict[str, Any]:
    """The fields of a job that the file itself says."""
    try:
        if upload.data.startswith(ZIP) or upload.suffix == ".epub":
            return _book(upload.data)
        return {"text": _text(upload)}
    except UnreadableBook as error:
        detail = str(error)
    except Undecodable as error:
        detail = f"cannot be read: {error}; send UTF-8, or say in its Content-Type which charset"
    raise field_problem(upload.field, upload.name or None, detail)


def _text(upload: Upload) -> str:
    if upload.data.startswith(PDF):
        raise UnreadableBook(f"is a PDF; {ENDINGS}")
    if upload.suffix not in SUFFIXES:
        raise UnreadableBook(f"has a name that ends in {shorten(upload.suffix)}; {ENDINGS}")
    text = decode(upload.data, upload.charset).removeprefix("\ufeff")
    if "\0" in text:
        raise UnreadableBook(f"is no text but other data; {ENDINGS}")
    return text


def _book(data: bytes) -> dict[str, Any]:
    if not data.startswith(ZIP):
        raise UnreadableBook("is no EPUB: it does not begin as a ZIP archive does")
    book = read_epub(data, speech().settings.max_long_text_chars)
    fields: dict[str, Any] = {"text": book.text, "chapters": True}
    fields |= {"title": book.title, "author": book.author}
    language = language_code(book.language)
    if language in languages_of(speech().workers()):
        fields["language"] = language
    return fields


# -- options ---------------------------------------------------------------------------------


def _values(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Options as JSON would have them: a number, ``true`` or an object is written as it is there,
    and text without quotes.
    """
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name in found:
            raise field_problem(name, text, "is given twice")
        found[name] = text if name in WORDS else _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except Problem:
        # The check of the field says what it must be.
        return text


def _joined(data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in data:
            raise field_problem(name, options[name], "is given twice, in the body and in the query")
    return data | options


def _words() -> set[str]:
    """The fields that hold text."""
    properties: dict[str, Any] = LongBody.model_json_schema()["properties"]
    return {
        name
        for name, schema in properties.items()
        if any(kind.get("type") == "string" for kind in (schema, *schema.get("anyOf", ())))
    }


WORDS = _words()
