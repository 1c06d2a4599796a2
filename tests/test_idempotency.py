"""Asked twice with the same Idempotency-Key: one job, whatever happens in between."""

import fcntl
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import requests

from app.accepting import fingerprint
from app.schemas import LongBody
from tasks.idempotency import IdempotencyKeys, InFlight
from tests.stack import Stack, wait_for

BODY = {"text": "Asked more than once.", "seed": 5}


def ask(stack: Stack, key: str, body: dict | None = None, **options: object) -> requests.Response:
    url = f"{stack.url}/synthesize/long{options.pop('query', '')}"
    headers = {"Idempotency-Key": key} | options.pop("headers", {})
    return requests.post(url, json=body or BODY, headers=headers, timeout=60)


def test_a_key_is_held_by_one_and_remembered(tmp_path: Path) -> None:
    keys = IdempotencyKeys(tmp_path)
    with keys.claim("owner", "key") as claim:
        assert claim.job_id == ""
        with pytest.raises(InFlight), keys.claim("owner", "key"):
            pass
        with keys.claim("another owner", "key") as other:
            assert other.job_id == ""
        claim.remember("a job", "print")
    with IdempotencyKeys(tmp_path).claim("owner", "key") as claim:
        assert (claim.job_id, claim.fingerprint) == ("a job", "print")
        claim.forget()
    with keys.claim("owner", "key") as claim:
        assert claim.job_id == ""


@pytest.mark.parametrize("left", [b"", b'{"job_id": "a jo', b"\0\0\0\0"])
def test_a_key_that_was_half_written_is_a_new_one(tmp_path: Path, left: bytes) -> None:
    keys = IdempotencyKeys(tmp_path)
    with keys.claim("owner", "key") as claim:
        claim.remember("a job", "print")
    (path,) = keys.root.iterdir()
    path.write_bytes(left)
    with keys.claim("owner", "key") as claim:
        assert claim.job_id == ""
        claim.remember("its job", "print")
    with keys.claim("owner", "key") as claim:
        assert claim.job_id == "its job"


def test_old_keys_are_removed_but_not_one_that_is_held(tmp_path: Path) -> None:
    keys = IdempotencyKeys(tmp_path)
    for name in ("held", "free"):
        with keys.claim("", name) as claim:
            claim.remember(name, "print")
    with keys.claim("", "held"):
        keys.delete_old(ttl_s=3600)
        assert len(list(keys.root.iterdir())) == 2
        keys.delete_old(ttl_s=-1)
        assert len(list(keys.root.iterdir())) == 1
    with keys.claim("", "held") as claim:
        assert claim.job_id == "held"


def test_a_key_removed_between_opening_and_locking_is_still_held_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a file that is no longer there would keep nobody out."""
    keys, real, calls = IdempotencyKeys(tmp_path), fcntl.flock, []

    def flock(file: BinaryIO, how: int) -> None:
        calls.append(file.name)
        if len(calls) == 1:
            Path(file.name).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with keys.claim("", "key"), pytest.raises(InFlight), keys.claim("", "key"):
        pass
    assert len(calls) == 3, "the first lock was given up"


def test_the_same_key_and_body_give_the_same_job(server: Stack) -> None:
    first, again = ask(server, "same"), ask(server, '"same"', BODY | {"steps": 2})
    assert first.status_code == again.status_code == 202
    assert first.json()["job_id"] == again.json()["job_id"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]


def test_the_same_key_for_another_body_is_refused(server: Stack) -> None:
    job_id = ask(server, "other").json()["job_id"]
    refused = ask(server, "other", BODY | {"seed": 6})
    assert refused.status_code == 422 and refused.json()["job_id"] == job_id


def test_a_refused_request_leaves_its_key_free(server: Stack) -> None:
    assert ask(server, "free", {"text": "..."}).status_code == 422
    assert ask(server, "free", BODY).status_code == 202


def test_a_request_refused_for_its_query_makes_no_job_and_takes_no_key(server: Stack) -> None:
    def newest() -> str:
        return server.get("/jobs?limit=1").json()["jobs"][0]["job_id"]

    before = ask(server, "the last one before").json()["job_id"]
    assert newest() == before
    headers = {"Idempotency-Key": "refused for its query"}
    body = {"text": "Nobody hears this."}
    refused = server.post("/synthesize/long?wait=maybe", body, headers=headers)
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "wait"
    assert newest() == before
    accepted = server.post("/synthesize/long", {"text": "Another body."}, headers=headers)
    assert accepted.status_code == 202


def test_a_key_is_free_again_once_its_job_is_deleted(server: Stack) -> None:
    path = f"/jobs/{ask(server, 'deleted').json()['job_id']}"
    wait_for(lambda: server.get(path).json()["state"] == "done", 60)
    server.delete(path)
    again = ask(server, "deleted", BODY | {"seed": 7})
    assert again.status_code == 202 and again.headers["Location"] != path


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "tab\tkey"])
def test_a_key_that_cannot_be_one_is_refused(server: Stack, key: str) -> None:
    refused = ask(server, key)
    assert refused.status_code == 400 and "Idempotency-Key" in refused.json()["detail"]


def test_the_header_does_no_harm_elsewhere(server: Stack) -> None:
    headers = {"Idempotency-Key": "harmless"}
    for _ in range(2):
        assert server.post("/synthesize", {"text": "Hello."}, headers=headers).status_code == 200
    assert server.get("/voices", headers=headers).status_code == 200


def test_many_at_once_make_one_job_and_waiting_gives_its_sound(server: Stack) -> None:
    """Two web processes, thirty requests at the same moment: one job; the others are told so."""
    body = BODY | {"output_format": "wav"}
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: ask(server, "rush", body), range(30)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    ids = {answer.json()["job_id"] for answer in answers if answer.status_code == 202}
    assert len(ids) == 1
    for answer in answers:
        assert answer.status_code == 202 or answer.headers["Retry-After"] == "1"
    sounds = [ask(server, "rush", body, query="?wait=true") for _ in range(2)]
    assert sounds[0].content == sounds[1].content and sounds[0].content[:4] == b"RIFF"
    assert {sound.headers["Location"] for sound in sounds} == {f"/jobs/{ids.pop()}"}


def test_keys_belong_to_the_owner_of_an_api_key_and_outlast_redis(stack: Stack) -> None:
    stack.env["SUPERTONIC_API_KEYS"] = "first-key-of-this-test,second-key-of-this-test"
    stack.start_all()
    mine = {"Authorization": "Bearer first-key-of-this-test"}
    yours = {"Authorization": "Bearer second-key-of-this-test"}
    job_id = ask(stack, "key", headers=mine).json()["job_id"]
    assert ask(stack, "key", headers=yours).json()["job_id"] != job_id
    for name in ("web", "files", "worker", "redis"):
        stack.kill(name)
    stack.start_all()
    again = ask(stack, "key", headers=mine)
    assert again.json()["job_id"] == job_id
    assert again.headers["Idempotent-Replayed"] == "true"


def test_fields_that_a_newer_version_knows_do_not_change_an_old_request() -> None:
    plain, newer = LongBody(text="Hi."), LongBody(text="Hi.", chapters=False, title="", lexicon={})
    assert fingerprint(plain) == fingerprint(newer)
    assert fingerprint(plain) != fingerprint(LongBody(text="Hi.", title="A title"))
    known = hashlib.sha256(b'{"text": "Hi."}').hexdigest()
    assert fingerprint(LongBody(text="Hi.", language="en")) in (known, fingerprint(plain))
