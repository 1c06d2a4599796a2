"""The download against a real HTTP server on localhost that behaves, or not, like the hub."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from supertonic.download import (
    MODEL_REPO,
    VOICES_REPO,
    WEIGHTS,
    HubUnreachable,
    Source,
    _within,
    download,
    read_manifest,
    sources,
)
from supertonic.errors import DownloadError
from tests.hub_stand_in import COMMIT, StandInHub
from tests.stack import closed_port, wait_for

BLOCK = 10 * 1024 * 1024  # what the hub library keeps of an interrupted transfer is a multiple
CONTENT = random.Random(1).randbytes(int(2.5 * BLOCK))
WANTED = sources("main", "main")


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    files = {(VOICES_REPO, s.file): f"content of {s.file}".encode() for s in WANTED[:-1]}
    with StandInHub(files | {(MODEL_REPO, WEIGHTS): CONTENT}) as running:
        yield running


def leftovers(directory: Path) -> list[Path]:
    return [*directory.rglob("*.part")]


def test_a_download_brings_every_file_and_lists_it_in_the_manifest(
    hub: StandInHub, tmp_path: Path
) -> None:
    report = download(tmp_path, WANTED, endpoint=hub.url)
    assert report.fetched == [s.file for s in WANTED]
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENT
    assert (tmp_path / "voice_styles/F5.json").read_bytes() == b"content of voice_styles/F5.json"
    listed = json.loads((tmp_path / "manifest.json").read_text())["files"][-1]
    assert listed == {
        "file": WEIGHTS,
        "bytes": len(CONTENT),
        "sha256": sha256(CONTENT).hexdigest(),
        "repo": MODEL_REPO,
        "revision": "main",
        "commit": COMMIT,
    }
    assert leftovers(tmp_path) == []


def test_a_second_download_verifies_and_asks_the_network_for_nothing(
    hub: StandInHub, tmp_path: Path
) -> None:
    download(tmp_path, WANTED, endpoint=hub.url)
    hub.requests.clear()
    report = download(tmp_path, WANTED, endpoint=hub.url)
    assert (report.fetched, hub.requests) == ([], [])
    assert report.kept == [s.file for s in WANTED]


def test_a_damaged_file_is_fetched_again_and_only_that_one(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, WANTED, endpoint=hub.url)
    path = tmp_path / WEIGHTS
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"x" if CONTENT[1000:1001] != b"x" else b"y")
    report = download(tmp_path, WANTED, endpoint=hub.url)
    assert report.fetched == [WEIGHTS]
    assert path.read_bytes() == CONTENT


def test_another_revision_is_looked_up_but_equal_files_are_not_sent_again(
    hub: StandInHub, tmp_path: Path
) -> None:
    hub.revisions += ("v2",)
    download(tmp_path, WANTED, endpoint=hub.url)
    hub.requests.clear()
    report = download(tmp_path, sources("v2", COMMIT), endpoint=hub.url)
    assert report.fetched == []
    assert hub.requests == [("HEAD", WEIGHTS, None)]
    assert read_manifest(tmp_path)[WEIGHTS].revision == "v2"


def test_a_connection_cut_in_the_middle_costs_only_the_rest(
    hub: StandInHub, tmp_path: Path
) -> None:
    hub.cut_after[WEIGHTS] = BLOCK + 1000
    download(tmp_path, WANTED, endpoint=hub.url)
    assert hub.asked_for(WEIGHTS) == [None, f"bytes={BLOCK}-"]
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENT


def test_a_download_killed_in_the_middle_continues_where_it_stopped(
    hub: StandInHub, tmp_path: Path
) -> None:
    hub.hold_after[WEIGHTS] = BLOCK + 1000
    command = [sys.executable, "-m", "supertonic", "download", "--revision", "main"]
    command += ["--voices-revision", "main", "--endpoint", hub.url, "--model-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        parts = partial(tmp_path.glob, f"{WEIGHTS}.*")
        wait_for(lambda: any(part.stat().st_size >= BLOCK for part in parts()), 60, "a first block")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / WEIGHTS).exists()

    report = download(tmp_path, WANTED, endpoint=hub.url)
    assert report.fetched == [WEIGHTS]
    assert hub.asked_for(WEIGHTS) == [None, f"bytes={BLOCK}-"]
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENT
    assert leftovers(tmp_path) == []


def test_two_downloads_at_once_into_one_directory_do_not_disturb_each_other(
    hub: StandInHub, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(download, tmp_path, WANTED, endpoint=hub.url) for _ in range(2)]
    fetched = [file for one in both for file in one.result().fetched]
    assert sorted(fetched) == sorted(s.file for s in WANTED)
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENT


@pytest.mark.parametrize("file", [WEIGHTS, "voice_styles/M1.json"])
def test_bytes_that_do_not_match_the_announced_checksum_are_refused(
    hub: StandInHub, tmp_path: Path, file: str
) -> None:
    hub.corrupt.add(file)
    with pytest.raises(DownloadError, match=rf"{file}.*checksum mismatch"):
        download(tmp_path, WANTED, endpoint=hub.url)
    assert not (tmp_path / file).exists()
    assert leftovers(tmp_path) == []
    hub.corrupt.clear()
    assert file in download(tmp_path, WANTED, endpoint=hub.url).fetched


def test_an_unknown_revision_is_named(hub: StandInHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Supertonic-2-Saftetensor has no revision 'v9'"):
        download(tmp_path, sources("v9", "main"), endpoint=hub.url)


def test_a_file_the_hub_does_not_have_is_named(hub: StandInHub, tmp_path: Path) -> None:
    missing = Source("voice_styles/M9.json", VOICES_REPO, "main")
    with pytest.raises(DownloadError, match="no voice_styles/M9.json of Supertone/supertonic-2"):
        download(tmp_path, [missing], endpoint=hub.url)


def test_without_a_network_the_error_says_how_to_place_the_files_by_hand(tmp_path: Path) -> None:
    with closed_port() as port, pytest.raises(HubUnreachable) as caught:
        download(tmp_path, WANTED, endpoint=f"http://127.0.0.1:{port}")
    message = str(caught.value)
    assert f"supertonic.safetensors from {MODEL_REPO} in {tmp_path}" in message
    assert "F5.json" in message and str(tmp_path / "voice_styles") in message
    assert "\n" not in message


def test_a_hub_that_accepts_but_never_answers_fails_within_ten_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(HubUnreachable):
            download(tmp_path, WANTED, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_proxy_that_answers_in_the_place_of_the_hub_counts_as_no_network(
    hub: StandInHub, tmp_path: Path, status: int
) -> None:
    hub.refuse_with = status
    with pytest.raises(HubUnreachable, match=f"the answer was {status}"):
        download(tmp_path, WANTED, endpoint=hub.url)


def test_a_name_lookup_that_hangs_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(HubUnreachable, match=r"no answer within 0\.1 s"):
        _within(0.1, threading.Event().wait)
    assert time.monotonic() - started < 5


def test_if_missing_is_content_without_a_network_but_a_plain_download_is_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "supertonic", "download", "--model-dir", str(tmp_path)]
    with closed_port() as port:
        command += ["--endpoint", f"http://127.0.0.1:{port}"]
        plain, tolerant = (
            subprocess.run(each, capture_output=True, text=True, timeout=60)
            for each in (command, [*command, "--if-missing"])
        )
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: cannot fetch") and plain.stderr.count("\n") == 1
    assert tolerant.returncode == 0
    assert "built-in voice" in tolerant.stdout and tolerant.stdout.count("\n") == 1


def test_if_missing_leaves_weights_alone_that_somebody_placed_by_hand(
    hub: StandInHub, tmp_path: Path
) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"my own fine-tuned weights")
    report = download(tmp_path, WANTED, endpoint=hub.url, if_missing=True)
    assert (tmp_path / WEIGHTS).read_bytes() == b"my own fine-tuned weights"
    assert WEIGHTS in report.kept
    assert WEIGHTS not in read_manifest(tmp_path)


def test_published_files_placed_by_hand_are_recognised_and_not_sent_again(
    hub: StandInHub, tmp_path: Path
) -> None:
    for (_, file), content in hub.files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    report = download(tmp_path, WANTED, endpoint=hub.url)
    assert report.fetched == []
    assert {method for method, _, _ in hub.requests} == {"HEAD"}
