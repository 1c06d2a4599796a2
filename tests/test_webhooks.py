"""Webhooks: signed as receivers expect, tried again, and never sent to private places."""

import base64
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.messages import State
from tasks.settings import Settings, SettingsError
from tasks.webhooks import (
    DELAYS_S,
    MAX_ATTEMPTS,
    Delivery,
    Refused,
    Turns,
    Webhooks,
    deliver,
    payload,
)
from tests.examples import a_job
from tests.stack import Stack, closed_port, wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """A web server that remembers what it was sent and answers as it is told."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def webhooks(addresses: list[str] | None = None, allow: str = "127.0.0.1", secret: str = SECRET):
    settings = Settings(webhook_secret=secret, webhook_allow_private=allow)
    if addresses is None:
        return Webhooks(settings)
    return Webhooks(settings, lambda host, port: addresses)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example that its libraries are tested with."""
    signed = webhooks().signature(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_secrets_change_both_sign() -> None:
    other = "an old secret of more than 24 bytes"
    both = webhooks(secret=f"{SECRET}, {other}").signature("a", "1", b"body").split(" ")
    assert both == [
        webhooks().signature("a", "1", b"body"),
        webhooks(secret=other).signature("a", "1", b"body"),
    ]


@pytest.mark.parametrize(
    ("secret", "allow", "reason"),
    [
        ("short", "", "5 bytes; at least 24"),
        ("whsec_!!!", "", "must be base64"),
        ("whsec_ä", "", "must be base64"),
        (SECRET, "10.0.0.0/99", "neither a host name nor a network"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(secret: str, allow: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        webhooks(secret=secret, allow=allow)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::10.1.2.3",
        "::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    for addresses in ([address], ["93.184.216.34", address]):
        with pytest.raises(Refused, match="not a public address"):
            webhooks(addresses, allow="").check("https://hook.example/end")
    webhooks(["93.184.216.34", "2606:2800:220:1::1"], allow="").check("https://hook.example/end")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::127.0.0.1]"]
)
def test_no_way_of_writing_this_machine_is_let_through(host: str) -> None:
    with pytest.raises(Refused, match="not a public address|no address"):
        webhooks(allow="").check(f"http://{host}:8002/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://hook.example/",
        "https://",
        "https:///path",
        "https://user:password@hook.example/",
        "https://hook.example/#part",
        "https://hook.example:99999/",
        "https://hook.example/a b",
        "https://hook.example/\r\nHost: other",
        "https://höök.example/",
        "https://hook.example/" + "a" * 2000,
        "https://[::1/",
        "https://hook.example:0/",
    ],
)
def test_what_is_no_usable_url_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        webhooks(["93.184.216.34"]).check(url)


@pytest.mark.parametrize("host", ["a..b", ".com", "a" * 70 + ".com"])
def test_what_cannot_be_a_host_is_refused(host: str) -> None:
    with pytest.raises(Refused, match="cannot be the name of a host"):
        Webhooks(Settings(webhook_secret=SECRET)).check(f"https://{host}/")


def test_without_a_secret_no_webhook_is_accepted() -> None:
    with pytest.raises(Refused, match="SUPERTONIC_WEBHOOK_SECRET"):
        webhooks(["93.184.216.34"], secret="").check("https://hook.example/")


def test_allowed_hosts_and_networks_are_let_through(receiver: Receiver) -> None:
    url = f"http://hook.example:{receiver.port}/end?a=1"
    for allow in ("127.0.0.0/8", "hook.example", "other, 10.0.0.0/8, Hook.Example"):
        assert webhooks(["127.0.0.1"], allow).send(url, "msg_1", b"{}") == 200
    webhooks(["::1"], "::1").check(url)
    webhooks(["::10.1.2.3"], "10.0.0.0/8").check(url)
    path, headers, _ = receiver.requests[-1]
    assert path == "/end?a=1" and headers["Host"] == f"hook.example:{receiver.port}"


def test_a_name_that_leads_elsewhere_by_the_time_of_sending_is_not_followed(
    receiver: Receiver,
) -> None:
    """DNS rebinding: what is connected to is what was checked."""
    addresses = ["93.184.216.34"]
    checked = webhooks(addresses, allow="")
    url = f"http://hook.example:{receiver.port}/"
    checked.check(url)
    addresses[:] = ["127.0.0.1"]
    with pytest.raises(Refused, match="hook.example is at 127.0.0.1"):
        checked.send(url, "msg_1", b"{}")
    assert receiver.requests == []


def test_redirects_are_not_followed() -> None:
    target, redirecting = Receiver(), None
    try:
        redirecting = Receiver(302, headers={"Location": f"http://127.0.0.1:{target.port}/"})
        status = webhooks().send(f"http://127.0.0.1:{redirecting.port}/", "msg_1", b"{}")
        assert status == 302 and target.requests == []
    finally:
        target.close()
        if redirecting:
            redirecting.close()


def test_who_answers_too_slowly_or_not_at_all_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.webhooks.ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError):
                for _ in range(300):
                    peer.sendall(b"H")
                    if stop.wait(0.2):
                        break

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        with pytest.raises((OSError, http.client.HTTPException)):
            webhooks().send(f"http://127.0.0.1:{server.getsockname()[1]}/", "msg_1", b"{}")
        took_s = time.monotonic() - started
        stop.set()
    assert took_s < 20, "it might have gone on for a minute"


def test_https_asks_for_a_certificate_of_that_name(receiver: Receiver) -> None:
    """A server without one: the handshake is tried, and nothing is sent in the clear."""
    with pytest.raises((ssl.SSLError, OSError)):
        webhooks().send(f"https://127.0.0.1:{receiver.port}/", "msg_1", b"{}")
    assert receiver.requests == []


# -- attempts --------------------------------------------------------------------------------


def ended_job():
    return replace(a_job("job"), state=State.DONE, finished_at=1_767_225_600.0)


def test_attempts_go_on_for_about_a_day_and_then_end(tmp_path: Path) -> None:
    away = webhooks(["127.0.0.1"])
    now, times = 1000.0, []
    with closed_port() as port:
        Delivery(f"http://hook.example:{port}/").save(tmp_path)
        while (made := deliver(away, tmp_path, ended_job(), now)) is not None:
            times.append(now)
            assert made.last_error and made.last_status is None
            assert deliver(away, tmp_path, ended_job(), now) is None, "not before its time"
            if made.next_attempt_at is None:
                break
            now = made.next_attempt_at
    assert made is not None and made.state == "failed" and made.attempts == MAX_ATTEMPTS
    assert [b - a for a, b in zip(times, times[1:], strict=False)] == list(DELAYS_S)
    assert 20 < (times[-1] - times[0]) / 3600 < 28
    assert deliver(away, tmp_path, ended_job(), now + 10**6) is None


def test_an_attempt_whose_maker_died_counts(tmp_path: Path) -> None:
    begun = Delivery("http://hook.example/").begun(now=1000.0)
    begun.save(tmp_path)
    assert (begun.attempts, begun.next_attempt_at) == (1, 1000.0 + DELAYS_S[0])
    last = replace(begun, attempts=MAX_ATTEMPTS - 1).begun(now=2000.0)
    last.save(tmp_path)
    after = deliver(webhooks(), tmp_path, ended_job(), now=3000.0)
    assert after is not None and after.state == "failed" and after.attempts == MAX_ATTEMPTS


def test_a_delivery_that_another_version_wrote_is_read(tmp_path: Path) -> None:
    Delivery("http://receiver/", attempts=3).save(tmp_path)
    path = tmp_path / "webhook.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"of_tomorrow": 1}), "utf-8")
    assert Delivery.load(tmp_path) == Delivery("http://receiver/", attempts=3)


def test_a_receiver_that_is_gone_is_left_alone(tmp_path: Path) -> None:
    gone = Receiver(410)
    Delivery(f"http://127.0.0.1:{gone.port}/").save(tmp_path)
    made = deliver(webhooks(), tmp_path, ended_job(), 1000.0)
    gone.close()
    assert made is not None and (made.state, made.last_status) == ("failed", 410)


def test_the_payload_is_the_same_in_every_attempt() -> None:
    job = ended_job()
    body = json.loads(payload(job))
    assert payload(job) == payload(replace(job))
    assert (body["type"], body["timestamp"]) == ("job.done", "2026-01-01T00:00:00Z")
    assert body["data"]["job_id"] == "job" and "text" not in str(body)


def test_hosts_that_do_not_answer_leave_a_turn_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.webhooks.SLOW_S", -1.0)  # any turn takes long
    turns, slow, other = Turns(2), "http://slow.example/", "http://other.example/"
    with turns.turn(slow) as first, turns.turn(slow) as second:
        assert first and second, "nobody knows yet"
    monkeypatch.setattr("tasks.webhooks.SLOW_S", 3600.0)
    with turns.turn(slow) as first, turns.turn("http://SLOW.example:81/") as second:
        assert first and not second
        with turns.turn(other) as third, turns.turn(other) as fourth:
            assert third and not fourth
    with turns.turn(slow) as first, turns.turn(slow) as second:
        assert first and second, "it was quick the last time"


# -- with everything running -----------------------------------------------------------------


def check_signed(headers: dict[str, str], body: bytes) -> None:
    """As a receiver would, with nothing of ours."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300


def test_a_job_tells_its_end_also_after_a_refusal_and_a_restart(stack: Stack) -> None:
    receiver = Receiver(500)
    stack.env |= {
        "SUPERTONIC_WEBHOOK_SECRET": SECRET,
        "SUPERTONIC_WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8",
    }
    stack.start_all()
    url = f"http://127.0.0.1:{receiver.port}/end?token=hidden"
    job = stack.post("/synthesize/long", {"text": "Hello there.", "webhook_url": url}).json()
    assert job["webhook"] | {"url": url, "state": "waiting", "attempts": 0} == job["webhook"]
    path = f"/jobs/{job['job_id']}"

    def refused() -> dict | None:
        told = stack.get(path).json()["webhook"]
        return told if told["last_status"] == 500 else None

    told = wait_for(refused, what="first attempt")
    assert (told["state"], told["attempts"]) == ("waiting", 1)
    begun_at = told["next_attempt_at"] - DELAYS_S[0]
    assert job["created_at"] < begun_at < int(receiver.requests[0][1]["webhook-timestamp"]) + 1
    for name in ("files", "redis"):
        stack.kill(name)
    stack.start_redis()
    stack.start_files()
    wait_for(lambda: len(receiver.requests) == 2, 40, "the second attempt")
    wait_for(lambda: stack.get(path).json()["webhook"]["state"] == "delivered")
    for sent_path, headers, body in receiver.requests:
        assert sent_path == "/end?token=hidden"
        check_signed(headers, body)
        assert json.loads(body)["data"]["job_id"] == job["job_id"]
    first, second = receiver.requests
    assert first[1]["webhook-id"] == second[1]["webhook-id"] and first[2] == second[2]
    private = {"text": "Hello.", "webhook_url": "http://10.0.0.1/"}
    answer = stack.post("/synthesize/long", private)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "webhook_url"
    assert "token" not in stack.log("files")
    receiver.close()


def test_a_server_without_a_secret_says_so(server: Stack) -> None:
    body = {"text": "Hello.", "webhook_url": "https://example.com/"}
    refused = server.post("/synthesize/long", body)
    assert refused.status_code == 422
    assert "SUPERTONIC_WEBHOOK_SECRET" in refused.json()["detail"]
