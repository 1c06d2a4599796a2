"""Connections are cut anywhere, and what arrives over all of them together is the whole speech."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import requests

from tests.sse import Received, joined, parse_events
from tests.stack import Stack, free_port, wait_for

# Many short chunks, so that a cut falls between them, at their edges and in their middle.
TEXT = "\n\n".join(f"Paragraph number {n} is short." for n in range(24))
CUTS = 200


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two web processes of one service: nothing a client needs may live in one of them."""
    stack = Stack(tmp_path_factory.mktemp("resume"), SUPERTONIC_WEB_PROCESSES="1")
    try:
        stack.start_all()
        port = free_port()
        stack.start_web("web2", port)
        second = f"http://127.0.0.1:{port}"
        wait_for(lambda: requests.get(f"{second}/readyz", timeout=5).status_code == 200)
        yield [stack.url, second]
    finally:
        stack.stop_all()


class Traveller:
    """A client whose connection breaks after a given number of bytes, and who comes back."""

    def __init__(self, addresses: list[str], rng: random.Random) -> None:
        self.addresses = addresses
        self.rng = rng
        self.events: list[Received] = []

    @property
    def is_done(self) -> bool:
        return bool(self.events) and self.events[-1].event not in ("accepted", "chunk")

    def begin(self, body: dict[str, object], limit: int | None) -> str:
        url = self.rng.choice(self.addresses) + "/synthesize/stream"
        with requests.post(url, json=body, stream=True, timeout=60) as response:
            self._read(response, limit)
            return response.headers["X-Job-Id"]

    def resume(self, job_id: str, limit: int | None) -> None:
        url = f"{self.rng.choice(self.addresses)}/jobs/{job_id}/events"
        headers = {"Last-Event-ID": self.events[-1].id} if self.events else {}
        with requests.get(url, headers=headers, stream=True, timeout=60) as response:
            assert response.status_code == 200
            self._read(response, limit)

    def _read(self, response: requests.Response, limit: int | None) -> None:
        """Keep the events that arrived whole within ``limit`` bytes; the rest is lost."""
        heard = b""
        for data in response.iter_content(None):
            heard += data
            if limit is not None and len(heard) >= limit:
                heard = heard[:limit]
                break
        self.events += parse_events(heard)


def some_bytes(rng: random.Random) -> int:
    """Where to cut: after a few bytes, which bring nothing at all, up to after some chunks."""
    return rng.choice([rng.randint(1, 2_000), rng.randint(1, 700_000)])


def test_a_stream_cut_anywhere_joins_to_the_same_samples(addresses: list[str]) -> None:
    rng = random.Random(86)
    body = {"text": TEXT, "seed": 5, "resumable": True}
    undisturbed = Traveller(addresses, rng)
    undisturbed.begin(body, None)
    whole = joined(undisturbed.events)
    n_cuts = 0
    while n_cuts < CUTS:
        traveller = Traveller(addresses, rng)
        job_id = traveller.begin(body, some_bytes(rng))
        while not traveller.is_done:
            traveller.resume(job_id, some_bytes(rng))
            n_cuts += 1
        kinds = [event.event for event in traveller.events]
        assert kinds == ["accepted", *["chunk"] * (len(kinds) - 2), "done"]
        indexes = [event.data["index"] for event in traveller.events if event.event == "chunk"]
        assert indexes == list(range(len(indexes)))
        difference = joined(traveller.events).astype(int) - whole
        assert np.abs(difference).max() <= 1


def test_a_long_job_cut_anywhere_joins_to_its_file(addresses: list[str]) -> None:
    rng = random.Random(44)
    body = {"text": TEXT, "seed": 3, "target_chunk_chars": 50}
    answer = requests.post(f"{addresses[0]}/synthesize/long", json=body, timeout=60).json()
    traveller = Traveller(addresses, rng)
    while not traveller.is_done:
        traveller.resume(answer["job_id"], some_bytes(rng))
    audio = requests.get(addresses[1] + answer["links"]["audio"], timeout=60).content
    whole = np.frombuffer(audio[44:], "<i2").astype(int)
    assert np.abs(joined(traveller.events).astype(int) - whole).max() <= 1


def test_what_is_no_longer_kept_is_a_gap_with_its_index(stack: Stack) -> None:
    stack.env["SUPERTONIC_DELIVERED_TTL_S"] = "1"
    stack.start_all()
    body = {"text": "First one.\n\nSecond one.\n\nThird one.", "seed": 1, "resumable": True}
    traveller = Traveller([stack.url], random.Random(1))
    job_id = traveller.begin(body, None)
    total = traveller.events[0].data["total"]
    assert total == 3
    wait_for(lambda: not stack.redis.keys(f"supertonic:audio:{job_id}:*"), what="no audio is left")
    late = Traveller([stack.url], random.Random(1))
    late.events = traveller.events[:2]
    late.resume(job_id, None)
    gaps = [event for event in late.events if event.event == "gap"]
    assert [gap.data["index"] for gap in gaps] == [1, 2]
    assert late.events[-1].event == "done"
