"""Telling a client's server that its long job has ended: signed, retried, never to private places.

Headers and signature are those of Standard Webhooks. Where a delivery stands is on disk beside
its job, so it survives everything; when the next attempt is due is decided from there and not by a
message that waits in a queue, because Redis may be lost and a message that a worker holds for hours
would look like one whose worker has died.
"""

import base64
import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tasks.jobsound import write_whole
from tasks.messages import Job
from tasks.settings import Settings, SettingsError

FILE = "webhook.json"
# Seconds before the second attempt, the third and so on: nine attempts in about a day.
DELAYS_S = (5, 60, 300, 1800, 7200, 18_000, 28_800, 28_800)
MAX_ATTEMPTS = len(DELAYS_S) + 1
CONNECT_S = 5.0
# Everything together, whatever the other side does.
ANSWER_S = 10.0
# A receiver that took longer than this the last time may take long again.
SLOW_S = 2.0
MAX_SLOW_HOSTS = 1000
MAX_URL = 2000
MIN_SECRET_BYTES = 24

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str, int], list[str]]


class Refused(Exception):
    """This address is not one that a webhook may be sent to; says why."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a delivery stands: ``waiting`` for the job or the next attempt, ``delivered``, or
    ``failed`` for good.
    """

    url: str
    state: str = "waiting"
    attempts: int = 0
    next_attempt_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None
    delivered_at: float | None = None

    def is_due(self, now: float) -> bool:
        return self.state == "waiting" and (self.next_attempt_at or 0) <= now

    def begun(self, now: float) -> "Delivery":
        """An attempt is about to be made. Written before it: whoever dies in the middle has
        made it, and the next one comes in its time.
        """
        is_last = self.attempts + 1 >= MAX_ATTEMPTS
        due = None if is_last else now + DELAYS_S[self.attempts]
        return replace(self, attempts=self.attempts + 1, next_attempt_at=due)

    def ended(self, status: int | None, error: str | None, now: float) -> "Delivery":
        """The attempt is over, with an HTTP status or an error."""
        told = replace(self, last_status=status, last_error=error)
        if status is not None and 200 <= status < 300:
            return replace(told, state="delivered", next_attempt_at=None, delivered_at=now)
        # 410 is how a receiver says that it wants no more.
        if status == 410 or self.attempts >= MAX_ATTEMPTS:
            return replace(told, state="failed", next_attempt_at=None)
        return told

    @classmethod
    def load(cls, folder: Path) -> "Delivery | None":
        """The delivery of the job in this folder, None if it has none."""
        try:
            record: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None
        # Another version may have written it: what this one does not know is left out.
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})

    def save(self, folder: Path) -> None:
        """FileNotFoundError: there is no such folder, as of a job that was deleted meanwhile."""
        write_whole(folder / FILE, json.dumps(asdict(self)).encode())


class Turns:
    """So many deliveries are made at the same time, and all but one of them may be to hosts that
    took long the last time: who does not answer delays nobody else.
    """

    def __init__(self, at_once: int) -> None:
        self._all = threading.BoundedSemaphore(at_once)
        self._slow = threading.BoundedSemaphore(at_once - 1)
        self._slow_hosts: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def turn(self, url: str) -> Iterator[bool]:
        """Whether a delivery may be made now, inside the block."""
        host = urlsplit(url).hostname or ""
        with ExitStack() as taken:
            is_slow = host in self._slow_hosts
            for turns in [self._slow, self._all] if is_slow else [self._all]:
                if not turns.acquire(blocking=False):
                    yield False
                    return
                taken.callback(turns.release)
            started = time.monotonic()
            try:
                yield True
            finally:
                self._slow_hosts.pop(host, None)
                if time.monotonic() - started > SLOW_S:
                    self._slow_hosts[host] = None
                if len(self._slow_hosts) > MAX_SLOW_HOSTS:
                    self._slow_hosts.popitem(last=False)


def look_up(host: str, port: int) -> list[str]:
    """Every address of a host, as text."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]).partition("%")[0] for *_, address in found]


class Webhooks:
    """Checks addresses, signs and sends.

    Raises:
        SettingsError: a secret or an allowed place cannot be read.
    """

    def __init__(self, settings: Settings, look_up: LookUp = look_up) -> None:
        self.secrets = _secrets(settings.webhook_secret)
        self.hosts, self.networks = _allowed(settings.webhook_allow_private)
        self._look_up = look_up

    def check(self, url: str) -> None:
        """Whether this URL may be given for a webhook.

        Raises:
            Refused: it may not.
        """
        if not self.secrets:
            raise Refused("webhooks need SUPERTONIC_WEBHOOK_SECRET to be set on the server")
        parts = _split(url)
        self._addresses(parts)

    def send(self, url: str, webhook_id: str, body: bytes) -> int:
        """One attempt; the status of the answer, whose content nobody reads.

        Raises:
            Refused: the host has only now, or once more, an address that is not allowed.
            OSError, http.client.HTTPException: it cannot be reached, or its answer is none.
        """
        parts = _split(url)
        # Resolved once and checked: what is connected to is this address, not the name again.
        address = self._addresses(parts)[0]
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "supertonic-server",
            "Connection": "close",
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": self.signature(webhook_id, timestamp, body),
        }
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with closing(_Connection(parts, address)) as connection:
            connection.request("POST", path, body, headers)
            return connection.getresponse().status

    def signature(self, webhook_id: str, timestamp: str, body: bytes) -> str:
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        digests = [hmac.new(secret, signed, hashlib.sha256).digest() for secret in self.secrets]
        return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)

    def _addresses(self, parts: SplitResult) -> list[str]:
        host = str(parts.hostname)
        try:
            found = self._look_up(host, _port(parts))
        except UnicodeError:
            raise Refused(f"{host[:100]} cannot be the name of a host") from None
        except OSError as error:
            raise Refused(f"{host} has no address: {error.strerror or error}") from None
        for text in found:
            if not self._is_allowed(host, ipaddress.ip_address(text)):
                raise Refused(
                    f"{host} is at {text}, which is not a public address and not among "
                    "SUPERTONIC_WEBHOOK_ALLOW_PRIVATE"
                )
        if not found:
            raise Refused(f"{host} has no address")
        return found

    def _is_allowed(self, host: str, address: Address) -> bool:
        inner = _inner(address)
        if host in self.hosts or any(inner in network for network in self.networks):
            return True
        return inner.is_global and not inner.is_multicast


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, if it does: mapped, compatible, 6to4, NAT64."""
    # :: and ::1 are addresses of their own.
    if isinstance(address, ipaddress.IPv4Address) or int(address) <= 1:
        return address
    if any(address in ipaddress.ip_network(prefix) for prefix in ("::/96", "64:ff9b::/96")):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _split(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > MAX_URL:
        raise Refused(f"must be a URL of at most {MAX_URL} printable ASCII characters")
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("there is no port 0")
    except ValueError as error:
        raise Refused(f"is not a URL: {error}") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Refused("must be an https or http URL with a host")
    if parts.username is not None or parts.fragment:
        raise Refused("must hold no user, password or fragment")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


class _Connection(http.client.HTTPConnection):
    """A connection to one address, whatever the name in the URL may lead to by now."""

    def __init__(self, parts: SplitResult, address: str) -> None:
        self.default_port = 443 if parts.scheme == "https" else 80
        super().__init__(str(parts.hostname), _port(parts), timeout=CONNECT_S)
        self.address = address
        self.is_secure = parts.scheme == "https"
        self._deadline: threading.Timer | None = None
        self._copy: socket.socket | None = None

    def connect(self) -> None:
        sock = socket.create_connection((self.address, self.port), timeout=CONNECT_S)
        # The timeout is per read; a byte now and then would go on for ever. A copy is shut, which
        # ends the connection as well: TLS takes the socket itself out of its object.
        self._copy = sock.dup()
        self._deadline = threading.Timer(ANSWER_S, _shut, [self._copy])
        self._deadline.daemon = True
        self._deadline.start()
        if self.is_secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
        self.sock = sock

    def close(self) -> None:
        if self._deadline is not None and self._copy is not None:
            self._deadline.cancel()
            self._copy.close()
        super().close()


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It has ended by itself meanwhile.
        pass


def _secrets(text: str) -> tuple[bytes, ...]:
    """Several, separated by commas, while one takes the place of another."""
    secrets = []
    for secret in filter(None, (part.strip() for part in text.split(","))):
        try:
            key = (
                base64.b64decode(secret.removeprefix("whsec_"), validate=True)
                if secret.startswith("whsec_")
                else secret.encode()
            )
        except ValueError:
            raise SettingsError(
                "SUPERTONIC_WEBHOOK_SECRET: what follows whsec_ must be base64"
            ) from None
        if len(key) < MIN_SECRET_BYTES:
            need = f"{len(key)} bytes; at least {MIN_SECRET_BYTES} are needed"
            raise SettingsError(f"SUPERTONIC_WEBHOOK_SECRET: {need}")
        secrets.append(key)
    return tuple(secrets)


def _allowed(text: str) -> tuple[set[str], list[ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    """Host names and networks, separated by commas."""
    hosts, networks = set(), []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(part, strict=False))
        except ValueError:
            if "/" in part or ":" in part:
                raise SettingsError(
                    f"SUPERTONIC_WEBHOOK_ALLOW_PRIVATE: {part!r} is neither a host name nor a "
                    "network such as 10.0.0.0/8"
                ) from None
            hosts.add(part.lower())
    return hosts, networks


def webhook_id(job: Job) -> str:
    """The same for every attempt, so that a receiver can tell a repetition."""
    return f"msg_{job.job_id}"


def payload(job: Job) -> bytes:
    """What is sent when ``job`` has ended; the same bytes in every attempt."""
    finished_at = job.finished_at or job.created_at
    data: dict[str, Any] = {
        "job_id": job.job_id,
        "state": job.state.value,
        "error": job.error,
        "chunks_total": job.count,
        "chunks_done": job.done,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "links": {"self": f"/jobs/{job.job_id}", "audio": f"/jobs/{job.job_id}/audio"},
    }
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(finished_at))
    body = {"type": f"job.{job.state.value}", "timestamp": stamp, "data": data}
    return json.dumps(body, ensure_ascii=False).encode()


def deliver(webhooks: Webhooks, folder: Path, job: Job, now: float) -> Delivery | None:
    """Make an attempt if one is due; the caller has the delivery for itself."""
    delivery = Delivery.load(folder)
    if delivery is None or not delivery.is_due(now):
        return None
    if delivery.attempts >= MAX_ATTEMPTS:
        # Whoever made the last attempt died over it.
        delivery = replace(delivery, state="failed", next_attempt_at=None)
        delivery.save(folder)
        return delivery
    delivery = delivery.begun(now)
    delivery.save(folder)
    status, error = None, None
    try:
        status = webhooks.send(delivery.url, webhook_id(job), payload(job))
    except (Refused, OSError, http.client.HTTPException) as problem:
        error = f"{type(problem).__name__}: {problem}"
    delivery = delivery.ended(status, error, time.time())
    delivery.save(folder)
    return delivery
