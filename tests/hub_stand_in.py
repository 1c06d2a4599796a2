"""A small Hugging Face hub on localhost: the few answers that the download relies on, over HTTP.

``StandInHub`` serves bytes by repository and path, writes down every request, and can misbehave
the way networks do: cut a transfer, hold it, or send other bytes than it announced.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

COMMIT = "c0ffee" + "0" * 34


@dataclass
class StandInHub:
    """Use as a context manager; ``url`` is the endpoint. Keys of ``files``: (repository, path)."""

    files: dict[tuple[str, str], bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    cut_after: dict[str, int] = field(default_factory=dict)  # path -> bytes of the next answer
    hold_after: dict[str, int] = field(default_factory=dict)  # path -> bytes, then silence
    corrupt: set[str] = field(default_factory=set)  # paths whose bytes differ from the checksum
    refuse_with: int | None = None  # a bare status for everything, as a proxy gives
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def asked_for(self, path: str) -> list[str | None]:
        """The Range header of every GET of ``path``, in order; None where it had none."""
        return [span for method, what, span in self.requests if (method, what) == ("GET", path)]


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def answer(self, send_body: bool) -> None:
            repo, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, path = rest.partition("/")
            span = self.headers.get("Range")
            hub.requests.append((self.command, path, span))
            content = hub.files.get((repo, path))
            if hub.refuse_with:
                self.refuse(hub.refuse_with)
            elif revision not in hub.revisions:
                self.refuse(404, "RevisionNotFound")
            elif content is None:
                self.refuse(404, "EntryNotFound")
            else:
                self.send_file(path, content, span, send_body)

        def refuse(self, status: int, code: str | None = None) -> None:
            self.send_response(status)
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_file(self, path: str, content: bytes, span: str | None, send_body: bool) -> None:
            start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
            body = content[start:]
            self.send_response(206 if span else 200)
            if span:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            if path.endswith(".safetensors"):  # large files live elsewhere, named by SHA-256
                self.send_header("ETag", '"of-the-pointer-only"')
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
            else:  # small ones live in git
                blob = f"blob {len(content)}\0".encode() + content
                self.send_header("ETag", f'"{hashlib.sha1(blob).hexdigest()}"')
            self.end_headers()
            if send_body:
                self.send_body(path, body)

        def send_body(self, path: str, body: bytes) -> None:
            if path in hub.corrupt:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if (cut := hub.cut_after.pop(path, None)) is not None:
                self.wfile.write(body[:cut])
                self.close_connection = True
            elif (hold := hub.hold_after.pop(path, None)) is not None:
                self.wfile.write(body[:hold])
                self.wfile.flush()
                hub.released.wait()
            else:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
