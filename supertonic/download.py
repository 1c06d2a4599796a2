"""Fetches the published Supertonic 2 files into a model directory and checks every byte of them.

An interrupted file continues where it stopped, a damaged one is fetched again, and a complete
directory needs no network: ``manifest.json`` remembers what each file must hash to.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from supertonic.errors import DownloadError
from supertonic.voices import VOICES

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

MODEL_REPO = "DevParker/Supertonic-2-Saftetensor"
MODEL_REVISION = "main"
VOICES_REPO = "Supertone/supertonic-2"
# The commit that Supertone's own Python package pins, so the ten voices cannot change under us.
VOICES_REVISION = "75e6727618a02f323c720cba9478152d4bc16ca4"
ENDPOINT = "https://huggingface.co"
WEIGHTS = "supertonic.safetensors"
MANIFEST = "manifest.json"

CONNECT_TIMEOUT_S = 4
# A silent firewall costs one connect timeout per address of the host, so one limit spans them all.
FIRST_ANSWER_S = 8

T = TypeVar("T")


class HubUnreachable(DownloadError):
    """The hub did not answer, or something that is no hub answered in its place."""


@dataclass(frozen=True)
class Source:
    """One file to fetch: its path in the repository and in the model directory, and its home."""

    file: str
    repo: str
    revision: str


@dataclass(frozen=True)
class Entry:
    """What the manifest says about one file. ``commit`` is what ``revision`` stood for then."""

    file: str
    bytes: int
    sha256: str
    repo: str
    revision: str
    commit: str


@dataclass(frozen=True)
class Report:
    fetched: list[str]
    kept: list[str]


def sources(
    model_revision: str = MODEL_REVISION, voices_revision: str = VOICES_REVISION
) -> list[Source]:
    """The files of a model directory. The weights come last: where they are, the rest is too."""
    voices = [f"voice_styles/{voice}.json" for voice in VOICES]
    return [Source(file, VOICES_REPO, voices_revision) for file in ["LICENSE", *voices]] + [
        Source(WEIGHTS, MODEL_REPO, model_revision)
    ]


def download(
    directory: Path, wanted: list[Source], *, endpoint: str | None = None, if_missing: bool = False
) -> Report:
    """Make ``directory`` hold every wanted file, verified, and write its manifest.

    With ``if_missing`` a file that the manifest does not know, so one that somebody put there by
    hand, is left alone. Raises DownloadError; HubUnreachable when there is no network.
    """
    # huggingface_hub reads this when it is imported, which is why no import of it is at the top.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    address = (endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    entries = read_manifest(directory)
    report = Report([], [])
    for source in wanted:
        path = directory / source.file
        entry = entries.get(source.file)
        by_hand = if_missing and entry is None and path.is_file()
        if by_hand or (entry is not None and _still_good(path, entry, source)):
            report.kept.append(source.file)
            continue
        with _explained(source, directory, address), _alone(directory):
            entries[source.file], fetched = _fetch(path, source, address)
        (report.fetched if fetched else report.kept).append(source.file)
        # Written after every file: an interruption must not forget what is already verified.
        _write_manifest(directory, entries)
    return report


def read_manifest(directory: Path) -> dict[str, Entry]:
    """The manifest's entries by file name; empty where there is none or it cannot be read."""
    try:
        listed = json.loads((directory / MANIFEST).read_text())["files"]
        return {entry["file"]: Entry(**entry) for entry in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def hashes(path: Path) -> tuple[int, str, str]:
    """Bytes, SHA-256, and the name git would give the content: hubs announce one of the two."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            git.update(block)
    return size, sha256.hexdigest(), git.hexdigest()


def _still_good(path: Path, entry: Entry, source: Source) -> bool:
    same_origin = entry.repo == source.repo and source.revision in (entry.revision, entry.commit)
    return same_origin and path.is_file() and hashes(path)[1] == entry.sha256


def _write_manifest(directory: Path, entries: dict[str, Entry]) -> None:
    text = json.dumps({"files": [asdict(entry) for entry in entries.values()]}, indent=2)
    unfinished = directory / f"{MANIFEST}.part"
    unfinished.write_text(text + "\n")
    unfinished.replace(directory / MANIFEST)


def _fetch(path: Path, source: Source, endpoint: str) -> tuple[Entry, bool]:
    """Bring one file to ``path`` unless it is there already; the entry, and whether it moved."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=endpoint)
    # Public files: no token is sent, so none can leak to a mirror or fail for being stale.
    # Uncompressed, because the ranges of a compressed answer cannot be joined.
    headers = {"User-Agent": "supertonic-server", "Accept-Encoding": "identity"}

    def announce() -> "HfFileMetadata":
        return get_hf_file_metadata(
            url, token=False, timeout=CONNECT_TIMEOUT_S, headers=headers, endpoint=endpoint
        )

    announced = _within(FIRST_ANSWER_S, announce)
    if announced.etag is None or announced.commit_hash is None:
        raise HubUnreachable(f"{endpoint} answered, but not like a Hugging Face hub")

    fetched = not (path.is_file() and _is_hash(announced.etag) and _matches(path, announced))
    if fetched:
        _transfer(path, announced, headers)
    size, sha256, _ = hashes(path)
    entry = Entry(source.file, size, sha256, source.repo, source.revision, announced.commit_hash)
    return entry, fetched


def _transfer(path: Path, announced: "HfFileMetadata", headers: dict[str, str]) -> None:
    # hf_hub_download would start over after an interruption (its temporary file is new each
    # time), so its parts are used with a file of ours. The version in the name keeps two versions
    # of one file from being glued together.
    from huggingface_hub.file_download import http_get

    path.parent.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256((announced.etag or "").encode()).hexdigest()[:16]
    part = path.with_name(f"{path.name}.{version}.part")
    if announced.size is not None and part.exists() and part.stat().st_size > announced.size:
        part.unlink()  # nothing could be appended to make it right
    with part.open("ab") as file:
        http_get(
            announced.location,
            file,
            resume_size=file.seek(0, os.SEEK_END),
            headers=headers,
            expected_size=announced.size,
            displayed_filename=path.name,
        )
    if not _matches(part, announced):
        size, sha256, _ = hashes(part)
        part.unlink()
        raise DownloadError(
            f"checksum mismatch: the hub announces {announced.etag}, what arrived is {size} bytes "
            f"with SHA-256 {sha256}; it was thrown away, run the download again"
        )
    part.replace(path)
    for stale in path.parent.glob(f"{path.name}.*.part"):
        stale.unlink()


def _is_hash(etag: str) -> bool:
    """SHA-256 for a large file, git's SHA-1 for a small one; a mirror may invent something else."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) is not None


def _matches(path: Path, announced: "HfFileMetadata") -> bool:
    size, *known = hashes(path)
    if announced.size is not None and size != announced.size:
        return False
    return announced.etag in known or not _is_hash(announced.etag or "")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let a second download into the same directory wait, then find the files already there."""
    from filelock import FileLock

    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".download.lock"):
        yield


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of ``call``, or HubUnreachable when name lookup and connecting take too long."""
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            failures.append(error)

    # A daemon, because a stuck name lookup cannot be cancelled and must not hold up the exit.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise HubUnreachable(f"no answer within {seconds:g} s")
    return results[0]


@contextmanager
def _explained(source: Source, directory: Path, endpoint: str) -> Iterator[None]:
    """Turn what the hub library raises into one sentence that says what to do."""
    import httpx2
    from huggingface_hub import errors

    where = f"{source.file} of {source.repo} at {endpoint}"
    by_hand = (
        f"place {WEIGHTS} from {MODEL_REPO} in {directory}, and "
        f"{', '.join(f'{voice}.json' for voice in VOICES)} from voice_styles/ of {VOICES_REPO} "
        f"in {directory / 'voice_styles'}"
    )
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise DownloadError(
            f"{source.repo} has no revision {source.revision!r}; use a branch, tag or commit of it"
        ) from error
    except (errors.RemoteEntryNotFoundError, errors.RepositoryNotFoundError) as error:
        raise DownloadError(
            f"no {where}, revision {source.revision!r}: it was moved or withdrawn; "
            f"to install by hand, {by_hand}"
        ) from error
    except errors.HfHubHTTPError as error:
        # A hub names its reason, which the cases above are; a bare status is a proxy or an outage.
        raise HubUnreachable(
            f"cannot fetch {where}: the answer was {error.response.status_code}; "
            f"check the network, try later, or {by_hand}"
        ) from error
    except (httpx2.HTTPError, ConnectionError, HubUnreachable) as error:
        raise HubUnreachable(
            f"cannot fetch {where}: {error}; check the network, or {by_hand}"
        ) from error
    except DownloadError as error:
        raise DownloadError(f"{where}: {error}") from error
    except OSError as error:
        raise DownloadError(f"cannot fetch {where} into {directory}: {error}") from error
