"""Files become long jobs: EPUB, Markdown and plain text, as a form or as the body itself."""

import io
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any

import av
import pytest
import requests

from tests.ebooks import epub2, epub3, packed, page
from tests.stack import Stack, wait_for
from tests.test_bad_input import problem
from tests.test_jobs import done

LONG = "/synthesize/long"
TEXT = {"Content-Type": "text/plain"}
MARKDOWN = {"Content-Type": "text/markdown; charset=utf-8"}
TALES = "# The Fox\n\nA fox lived here.\n\n# The Crow\n\nSo did a crow.\n"


def send(stack: Stack, data: bytes, query: str = "", **headers: str) -> requests.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return stack.session.post(stack.url + LONG + query, data=data, headers=given, timeout=60)


def send_file(
    stack: Stack, data: bytes, name: str = "book.epub", kind: str = "", **options: str
) -> requests.Response:
    """As curl's -F sends it; with a type that says nothing, as browsers guess one for EPUB."""
    file = (name, data, kind or "application/octet-stream")
    url = stack.url + LONG
    return stack.session.post(url, files={"file": file}, data=options, timeout=60)


def chapters(stack: Stack, job: dict[str, Any]) -> list[str]:
    listed = stack.get(job["links"]["chapters"]).json()["chapters"]
    return [chapter["title"] for chapter in listed]


def refusal(answer: requests.Response, status: int = 422, field: str = "file") -> str:
    told = problem(answer, status)
    if status == 422:
        assert [error["field"] for error in told["errors"]] == [field]
    return str(told["detail"])


# -- what is taken ---------------------------------------------------------------------------


def test_an_epub_becomes_an_audiobook_with_its_chapters(server: Stack) -> None:
    answer = send_file(server, packed(epub3()), voice="F1", seed="3", speed="1.5")
    assert answer.status_code == 202, answer.text
    job = done(server, answer.json()["job_id"])
    assert (job["voice"], job["seed"], job["speed"], job["warnings"]) == ("F1", 3, 1.5, [])
    told = server.get(job["links"]["chapters"]).json()
    assert (told["title"], told["author"]) == ("Tales of Old", "Anna Abel, Bob Bell")
    titles = ["1. The Fox", "2. The Crow", "The End & After"]
    with av.open(io.BytesIO(server.get(job["links"]["book"]).content)) as book:
        assert [each["metadata"]["title"] for each in book.chapters()] == titles
        assert book.metadata["title"] == "Tales of Old"
        assert book.metadata["artist"] == "Anna Abel, Bob Bell"
        starts = [float(each["start"] * each["time_base"]) for each in book.chapters()]
    assert starts == pytest.approx([c["start_seconds"] for c in told["chapters"]], abs=0.002)
    captions = server.get(job["links"]["captions"]).text
    assert "A fox lived here." in captions and "So did a crow." in captions
    assert "note" not in captions and "Hidden" not in captions and "more books" not in captions


def test_the_request_comes_before_what_the_book_says(server: Stack) -> None:
    options = {"title": "Mine", "author": "Me", "chapters": "false", "pause_s": "0"}
    job = send_file(server, packed(epub2()), **options).json()
    told = server.get(job["links"]["chapters"]).json()
    assert (told["title"], told["author"], told["chapters"]) == ("Mine", "Me", [])
    assert job["pause_s"] == 0 and job["language"] == "en"


def test_a_language_that_nobody_here_speaks_is_left_to_the_request(server: Stack) -> None:
    files = epub2()
    files["OEBPS/content.opf"] = str(files["OEBPS/content.opf"]).replace(">en<", ">fi<")
    assert send_file(server, packed(files)).json()["language"] == "en"


@pytest.mark.parametrize("language", ["ko", "pt-BR"])
def test_the_language_of_a_book_is_spoken_where_it_can_be(quick: Stack, language: str) -> None:
    files = epub2()
    files["OEBPS/content.opf"] = str(files["OEBPS/content.opf"]).replace(">en<", f">{language}<")
    data = packed(files)
    assert send_file(quick, data).json()["language"] == language[:2]
    assert send_file(quick, data, language="fr").json()["language"] == "fr"


def test_a_text_is_the_body_and_its_options_are_the_query(server: Stack) -> None:
    query = "?voice=F2&chapters=true&title=Old%20Tales&seed=null&speed=2"
    query += "&lexicon=%7B%22fox%22:%22wolf%22%7D"
    for headers, data in (
        (TEXT, TALES.encode()),
        (TEXT, b"\xef\xbb\xbf" + TALES.encode()),
        (MARKDOWN, TALES.replace("\n", "\r\n").encode()),
        ({"Content-Type": "text/plain; charset=UTF-16"}, TALES.encode("utf-16")),
        ({"Content-Type": "application/epub+zip"}, packed(epub2())),
    ):
        answer = server.session.post(server.url + LONG + query, data=data, headers=headers)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["voice"], job["speed"]) == ("F2", 2)
        assert server.get(job["links"]["chapters"]).json()["title"] == "Old Tales"
        if "epub" not in headers["Content-Type"]:
            assert chapters(server, job) == ["The Fox", "The Crow"]


def test_the_options_of_json_may_stand_in_the_query_too(server: Stack) -> None:
    job = server.post(f"{LONG}?voice=F5&_=12", {"text": "Hello.", "speed": 2}).json()
    assert (job["voice"], job["speed"]) == ("F5", 2)
    twice = server.post(f"{LONG}?voice=F5", {"text": "Hello.", "voice": "F4"})
    assert "is given twice" in refusal(twice, field="voice")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("tales.md", TALES.encode(), "text/plain"),
        ("TALES.TXT", TALES.encode("utf-16"), "image/png"),
        ("tales", TALES.encode(), "application/epub+zip"),
        ("C:\\books\\tales.text", TALES.encode("cp1252"), "text/plain; charset=windows-1252"),
        ("tales.zip", packed(epub2()), "text/plain"),
    ],
)
def test_a_file_is_taken_for_what_it_is(server: Stack, name: str, data: bytes, kind: str) -> None:
    answer = send_file(server, data, name, kind, chapters="true")
    assert answer.status_code == 202, answer.text
    assert chapters(server, answer.json())[0] in ("The Fox", "The Mill")


def test_the_sound_may_be_waited_for(server: Stack) -> None:
    answer = send(server, b"Read me.", "?wait=true&output_format=wav&seed=1", **TEXT)
    assert answer.status_code == 200 and answer.content[:4] == b"RIFF"
    body = {"text": "Read me.", "seed": 1, "output_format": "wav"}
    said = server.post(f"{LONG}?wait=true", body)
    assert len(said.content) == len(answer.content)


def test_the_same_file_and_key_give_the_same_job(server: Stack) -> None:
    def ask(data: bytes, **options: str) -> requests.Response:
        headers = {"Idempotency-Key": "a file"}
        files = {"file": ("book.epub", data)}
        url = server.url + LONG
        return requests.post(url, files=files, data=options, headers=headers, timeout=60)

    first, again = ask(packed(epub2())), ask(packed(epub2(), 0), voice="M1")
    assert first.status_code == again.status_code == 202
    assert first.json()["job_id"] == again.json()["job_id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    changed = epub2() | {"OEBPS/b.html": page("<p>Another text.</p>")}
    assert ask(packed(changed)).status_code == 422
    refused = send(server, b"\xff", Idempotency_Key="another file", **TEXT)
    assert refused.status_code == 422
    assert send(server, b"Taken.", Idempotency_Key="another file", **TEXT).status_code == 202


def test_a_novel_is_accepted_and_others_are_served_meanwhile(server: Stack) -> None:
    sentence = "The lighthouse keeper climbed the stairs and lit the lamp before the fog came in. "
    files = epub2()
    files["OEBPS/a.html"] = page("<h1>The Mill</h1>" + f"<p>{sentence * 4}</p>" * 1800)
    files["OEBPS/c.html"] = page("<h1>The End</h1>" + f"<p>{sentence * 4}</p>" * 1000)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        sent = pool.submit(send_file, server, packed(files))
        waits = []
        while not sent.done():
            asked = time.monotonic()
            assert requests.get(server.url + "/voices", timeout=30).status_code == 200
            waits.append(time.monotonic() - asked)
    answer = sent.result()
    assert answer.status_code == 202, answer.text
    job = answer.json()
    try:
        assert job["characters"] > 900_000 and job["chunks_total"] > 2800
        assert time.monotonic() - began < 20 and max(waits) < 5
        listed = server.get("/jobs?limit=1").json()["jobs"]
        assert [each["job_id"] for each in listed] == [job["job_id"]]
        assert chapters(server, job) == ["The Mill", "The End"]
    finally:
        server.delete(job["links"]["self"])


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("book.epub", b"", "no EPUB: it does not begin as a ZIP archive does"),
        ("book.epub", b"PK\x03\x04 and no more", "is a broken ZIP archive"),
        ("book.epub", packed(epub3())[:-30], "is a broken ZIP archive"),
        ("book.docx", packed({"word/document.xml": "<a/>"}), "a ZIP archive but no EPUB"),
        ("book.epub", packed(epub3() | {"META-INF/rights.xml": "<r/>"}), "protected by DRM"),
        ("book.pdf", b"%PDF-1.7 ...", "is a PDF; what is read are EPUB, Markdown"),
        ("book.html", b"<p>Hi.</p>", "ends in .html; what is read are EPUB"),
        ("book.mobi", b"BOOKMOBI", "ends in .mobi"),
        ("book.txt", b"caf\xe9", "byte 3 is not UTF-8; send UTF-8"),
        ("book.txt", b"a\0b", "is no text but other data"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    server: Stack, name: str, data: bytes, says: str
) -> None:
    assert says in refusal(send_file(server, data, name))


def test_what_is_wrong_with_a_text_or_option_is_told_as_of_json(server: Stack) -> None:
    for sent, field, says in (
        (send_file(server, b"", "a.txt"), "text", "nothing to say"),
        (send(server, b"...", **TEXT), "text", "nothing to say"),
        (send(server, b"Hi.", "?speed=fast", **TEXT), "speed", "a number from 0.5 to 2.0"),
        (send(server, b"Hi.", "?speed=", **TEXT), "speed", "a number from 0.5 to 2.0"),
        (send(server, b"Hi.", "?speed=" + "9" * 3000, **TEXT), "speed", "a number from 0.5"),
        (send(server, b"Hi.", "?chapters=yes", **TEXT), "chapters", "true or false"),
        (send(server, b"Hi.", "?voice=X1", **TEXT), "voice", "one of M1"),
        (send(server, b"Hi.", "?sped=1", **TEXT), "sped", "is not a known field"),
        (send(server, b"Hi.", "?text=Ho.", **TEXT), "text", "is in the file"),
        (send(server, b"Hi.", "?voice=F1&voice=F2", **TEXT), "voice", "is given twice"),
        (send(server, b"Hi.", "?lexicon=5", **TEXT), "lexicon", "an object of at most 500"),
        (send_file(server, b"Hi.", "a.txt", steps="0"), "steps", "from 1 to 50"),
        (send_file(server, b"Hi.", "a.txt", title="x" * 201), "title", "at most 200"),
        (send_file(server, b"Hi.", "a.txt", webhook_url="ftp://x"), "webhook_url", "webhook"),
    ):
        assert says in refusal(sent, field=field), field


def test_a_charset_that_is_not_known_is_named(server: Stack) -> None:
    for charset, says in (("klingon", "'klingon' is not known"), ("ascii", "is not ASCII")):
        answer = send(server, "é".encode(), Content_Type=f"text/plain; charset={charset}")
        assert says in refusal(answer, field="body")


def test_a_form_has_one_file(server: Stack) -> None:
    url, file = server.url + LONG, ("a.txt", b"Hi.")
    for files, data, says in (
        ({"other": file}, {}, "files sent: other"),
        ([("file", file), ("file", file)], {}, "files sent: file, file"),
        ({"file": file, "voice": ("v", b"F1")}, {}, "files sent: file, voice"),
        ({"file": (None, b"Hi.")}, {}, "files sent: none"),
    ):
        assert says in refusal(requests.post(url, files=files, data=data, timeout=60))
    headers = {"Content-Type": "multipart/form-data"}
    for data in (b"", b"--x\r\n", b"Hi."):
        problem(requests.post(url, data=data, headers=headers, timeout=60), 400)
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = requests.post(url, data=data, headers=kind, timeout=60)
        problem(answer, answer.status_code)
        assert answer.status_code in (400, 422)
    many = {f"f{n}": "1" for n in range(60)}
    assert (
        "more than 50 parts" in problem(send_file(server, b"Hi.", "a.txt", **many), 413)["detail"]
    )
    big = send_file(server, b"Hi.", "a.txt", title="x" * 600_000)
    assert "more than 500000 bytes in one" in problem(big, 413)["detail"]


def test_other_types_are_told_what_is_taken(server: Stack) -> None:
    for kind in ("application/pdf", "text/html", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind} if kind else {}
        detail = problem(requests.post(server.url + LONG, data=b"x", headers=headers), 415)[
            "detail"
        ]
        assert "application/json" in detail and "multipart/form-data" in detail
    packed_body = send(server, b"x", Content_Encoding="gzip", **TEXT)
    assert "Content-Encoding is gzip" in problem(packed_body, 415)["detail"]
    elsewhere = requests.post(server.url + "/synthesize", files={"file": ("a.txt", b"Hi.")})
    assert "send application/json" in problem(elsewhere, 415)["detail"]


def test_a_broken_archive_gives_a_job_or_a_problem(server: Stack) -> None:
    chance, whole = random.Random(11), packed(epub3())
    statuses = set()
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((0, 1, 8))):
            data[chance.randrange(4, len(data))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        answer = send_file(server, bytes(data))
        statuses.add(answer.status_code)
        if answer.status_code == 202:
            server.delete(f"/jobs/{answer.json()['job_id']}")
        else:
            refusal(answer)
    assert statuses == {202, 422}
    assert "unexpected error" not in server.log("web")


# -- limits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An engine that takes no time, with limits that a test can reach, and keys."""
    stack = Stack(
        tmp_path_factory.mktemp("quick"),
        NULL_BYTES="2000",
        SUPERTONIC_WEB_PROCESSES="1",
        SUPERTONIC_WEB_THREADS="40",
        SUPERTONIC_MAX_UPLOAD_BYTES="200000",
        SUPERTONIC_MAX_LONG_TEXT_CHARS="10000",
        SUPERTONIC_API_KEYS="first-key-of-this-test,second-key-of-this-test",
    )
    stack.start_redis()
    stack.start_worker(app="benchmarks.null_worker")
    stack.start_files()
    stack.start_web()
    stack.session.headers["Authorization"] = "Bearer first-key-of-this-test"
    stack.wait_ready()
    yield stack
    stack.stop_all()


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(quick: Stack) -> None:
    head = (
        f"POST {LONG} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Authorization: Bearer first-key-of-this-test\r\nContent-Length: 200001\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", quick.port), timeout=10) as sock:
        sock.sendall(head.encode())
        answer = HTTPResponse(sock)
        answer.begin()
        assert answer.status == 413
        assert b"larger than 200000 bytes (SUPERTONIC_MAX_UPLOAD_BYTES)" in answer.read()


def test_files_without_a_length_are_limited_too(quick: Stack) -> None:
    def blocks(size: int, head: bytes = b"", end: bytes = b"") -> Iterator[bytes]:
        yield head
        for start in range(0, size, 10_000):
            yield b"word " * (min(10_000, size - start) // 5)
        yield end

    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for headers, data, status in (
        (TEXT, blocks(9_000), 202),
        (TEXT, blocks(200_000), 422),
        (TEXT, blocks(400_000), 413),
        (form, blocks(9_000, head, b"\r\n--x--\r\n"), 202),
        (form, blocks(400_000, head, b"\r\n--x--\r\n"), 413),
    ):
        answer = quick.session.post(quick.url + LONG, data=data, headers=headers, timeout=60)
        assert answer.status_code == status, answer.text
        assert status != 413 or "larger than 200000 bytes" in answer.json()["detail"]


def test_a_book_may_be_as_long_as_any_text_of_a_job(quick: Stack) -> None:
    def book(chars: int) -> bytes:
        return packed(epub2() | {"OEBPS/b.html": page(f"<p>{'word ' * (chars // 5)}</p>")})

    assert send_file(quick, book(9_000)).status_code == 202
    says = refusal(send_file(quick, book(11_000)))
    assert "more than 10000 characters of text" in says
    assert "at most 10000" in refusal(send(quick, b"a " * 6_000, **TEXT), field="text")
    # Only long jobs are that long.
    short = quick.post("/synthesize", {"text": "a " * 26_000})
    assert "at most 50000" in problem(short, 422)["detail"]


def test_keys_are_needed_for_files_too(quick: Stack) -> None:
    files = {"file": ("book.epub", packed(epub2()))}
    assert requests.post(quick.url + LONG, files=files, timeout=60).status_code == 401
    job = send_file(quick, packed(epub2())).json()
    other = {"Authorization": "Bearer second-key-of-this-test"}
    assert requests.get(quick.url + job["links"]["self"], headers=other).status_code == 404


def test_many_files_at_once_are_read_in_turn(quick: Stack) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: send_file(quick, packed(epub3())), range(40)))
    assert {answer.status_code for answer in answers} == {202}


def test_a_slow_sender_keeps_nobody_from_the_rest(quick: Stack) -> None:
    head = (
        f"POST {LONG} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n"
        "Authorization: Bearer first-key-of-this-test\r\n\r\nHalf of"
    )
    slow = [socket.create_connection(("127.0.0.1", quick.port), timeout=60) for _ in range(4)]
    try:
        for sock in slow:
            sock.sendall(head.encode())

        def refused() -> list[requests.Response]:
            answer = send(quick, b"Hello.", **TEXT)
            return [] if answer.status_code == 202 else [answer]

        # Once it is the turn of all four, and for as long as they may send.
        (answer,) = wait_for(refused, 60)
        assert quick.post(LONG, {"text": "Hello."}).status_code == 202
        assert problem(answer, 503)["detail"].startswith("Other files are being read")
        assert answer.headers["Retry-After"] == "5"
    finally:
        for sock in slow:
            sock.close()
    assert send(quick, b"Hello.", **TEXT).status_code == 202


def test_uploads_count_against_the_rate_limit(stack: Stack) -> None:
    stack.env["SUPERTONIC_RATE_LIMIT"] = "2/minute"
    stack.start_redis()
    stack.start_worker(app="benchmarks.null_worker")
    stack.start_web()
    stack.wait_ready()
    sent = [send_file(stack, packed(epub2())).status_code for _ in range(3)]
    assert sent == [202, 202, 429]


def test_the_document_tells_of_files(server: Stack) -> None:
    document = server.get("/openapi.json").json()
    operation = document["paths"][LONG]["post"]
    content = operation["requestBody"]["content"]
    kinds = {"application/json", "text/plain", "text/markdown", "multipart/form-data"}
    assert content.keys() == kinds | {"application/epub+zip"}
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["file"] and {"file", "voice", "title"} <= form["properties"].keys()
    assert "text" not in form["properties"]
    assert json.dumps(document["components"]["schemas"]["LongBody"]).count("1000000") == 1
