"""Idempotency keys: who asks for a job twice with the same key gets the same job.

One small file per key under ``DATA/idempotency``, named by a hash of owner and key, so it outlives
Redis and every process. Its lock is held from looking it up until the job is on disk: a second
request with the key that comes in between sees that the first is still being handled.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class InFlight(Exception):
    """Another request with this key is being handled at this moment."""


@dataclass(slots=True)
class Claim:
    """What is known of a key, for the one who holds it. ``job_id`` is empty for a new key."""

    job_id: str
    fingerprint: str
    _file: BinaryIO

    def remember(self, job_id: str, fingerprint: str) -> None:
        """Before the job is made: whoever dies in between leaves a key without a job."""
        self.job_id, self.fingerprint = job_id, fingerprint
        self._write(json.dumps({"job_id": job_id, "fingerprint": fingerprint}).encode())

    def forget(self) -> None:
        """The job was refused, so the key may be used again."""
        self._write(b"")

    def _write(self, data: bytes) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


class IdempotencyKeys:
    """Their directory inside a data directory."""

    def __init__(self, data_dir: str | Path) -> None:
        self.root = Path(data_dir) / "idempotency"

    @contextmanager
    def claim(self, owner: str, key: str) -> Iterator[Claim]:
        """Hold a key while the block runs.

        Raises:
            InFlight: somebody else holds it.
        """
        path = self.root / hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(path) as file:
            yield Claim(*_known(file.read()), file)

    def delete_old(self, ttl_s: float) -> None:
        """Remove keys that were last written so long ago that their jobs have expired."""
        for path in self.root.glob("*"):
            # Somebody else may hold it, or remove it at this moment.
            with suppress(InFlight, FileNotFoundError):
                if path.stat().st_mtime <= time.time() - ttl_s:
                    with _locked(path):
                        path.unlink(missing_ok=True)


def _known(data: bytes) -> tuple[str, str]:
    """Job and fingerprint. What was half written when the machine stopped is as good as nothing:
    its job is made after it.
    """
    try:
        record = json.loads(data)
    except ValueError:
        return "", ""
    return record["job_id"], record["fingerprint"]


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        path.touch()
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InFlight from None
            if _is_still(path, file):
                yield file
                return


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is the one of that name: it may have been removed before the lock."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
