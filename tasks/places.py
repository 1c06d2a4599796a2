"""Where finished sound is kept when that is not the data directory: any URL that fsspec knows.

``s3://bucket/prefix``, ``gs://…``, ``file:///mnt/archive`` and so on; fsspec is only needed where
such a URL is set. Sound goes there as a stream of blocks, and comes back the same way.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tasks.redact import without_login
from tasks.settings import SettingsError

BLOCK_BYTES = 8 << 20
# These have no folders, and to make one would make the bucket, also one that is only misspelt.
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "az", "oss"}


class PlaceAway(Exception):
    """The place where sound is kept cannot be reached, or does not take it; says why."""


class Place:
    """A folder at a URL.

    Raises:
        SettingsError: nothing that is installed can open such a URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = _open_url(self.url)

    def check(self) -> None:
        """Write something and remove it.

        Raises:
            PlaceAway: it cannot be written.
        """
        probe = f"{self._root}/.probe-{uuid.uuid4().hex[:8]}"
        with _telling(self.url):
            if not BUCKETS.intersection(_protocols(self._fs)):
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"supertonic")
            self._fs.rm_file(probe)

    def put(self, name: str, path: Path) -> str:
        """Copy a file there; returns its URL."""
        with _telling(self.url), path.open("rb") as source:
            with self._fs.open(f"{self._root}/{name}", "wb", block_size=BLOCK_BYTES) as target:
                shutil.copyfileobj(source, target, BLOCK_BYTES)
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        """Of a file there."""
        return f"{self.url}/{name}"


def open_at(url: str) -> tuple[BinaryIO, int] | None:
    """A file at a URL and its size in bytes, None if it is not there."""
    fs, path = _open_url(url)
    with _telling(url):
        try:
            size: int = fs.size(path)
            return fs.open(path, "rb", block_size=BLOCK_BYTES // 4), size
        except FileNotFoundError:
            return None


def read_at(url: str, start: int, size: int) -> bytes | None:
    """Part of a file at a URL, in bytes."""
    fs, path = _open_url(url)
    with _telling(url):
        try:
            data: bytes = fs.cat_file(path, start=start, end=start + size)
            return data
        except FileNotFoundError:
            return None


def remove_at(url: str) -> None:
    fs, path = _open_url(url)
    with _telling(url):
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return


def _open_url(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)
    except ImportError as error:
        hint = "pip install 'supertonic-server[storage]', and s3fs for s3://, gcsfs for gs://"
        raise _refused(url, f"{error} ({hint})") from None
    except ValueError as error:
        raise _refused(url, str(error)) from None
    return fs, str(path).rstrip("/")


def _refused(url: str, why: str) -> SettingsError:
    return SettingsError(without_login(f"SUPERTONIC_JOBS_URL={url!r}: {why}"))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Every store has exceptions of its own; here they become one."""
    try:
        yield
    except Exception as error:
        told = without_login(f"{url}: {type(error).__name__}: {error}")
        raise PlaceAway(told) from error
