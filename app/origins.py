"""Which web pages may use this server, and what browsers are told about its answers.

A browser runs the pages of strangers on machines that reach this server, so three things are
checked before anything else. The name in ``Host``: a page can point a name of its own at this
address (DNS rebinding) and would then count as the server's own page. ``Origin``: a page of
another site must not make speech or change anything, and may not open the WebSocket, to which the
browser's own rules do not apply. And CORS lets exactly the listed pages in. Programs send neither
a foreign ``Host`` nor an ``Origin``, so none of this concerns them.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from flask import Request, Response, current_app, request

from app.errors import Problem
from app.keys import Keyring
from tasks.settings import Settings, SettingsError

# Names that cannot be registered by a stranger.
LOCAL_SUFFIXES = (".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa", ".test")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#,\s]+")

ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Range, X-API-Key"
# What else a listed page wants to send is nobody's harm; OpenAI's client describes itself.
HEADER_NAMES = re.compile(r"[\w-]+( *, *[\w-]+)*", re.ASCII)
EXPOSED_HEADERS = (
    "Accept-Ranges, Content-Range, ETag, Idempotent-Replayed, Location, "
    "RateLimit, RateLimit-Policy, Retry-After, X-Job-Id, X-Queue-Wait-Ms, X-Request-Id, "
    "X-Sample-Rate, X-Seed, X-Warnings"
)
PREFLIGHT_S = 600

# An answer of the API is never a page; the page itself brings a policy of its own.
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Content-Security-Policy": API_POLICY,
}


class Origins:
    """The rules of one server about hosts and origins."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        """
        Raises:
            SettingsError: an origin or host of the settings cannot be one.
        """
        self.listed = frozenset(_origins(settings.cors_origins))
        self._hosts = _hosts(settings.allowed_hosts)
        self._are_keys_needed = keyring.are_needed
        self._own_name = socket.gethostname().lower()

    def knows_host(self, host: str) -> bool:
        """Whether ``host``, a Host header, is a name under which this server may be asked."""
        name = _name(host)
        if not host or name in LOOPBACK or "*" in self._hosts:
            return True
        if any(
            name == known or (known.startswith(".") and name.endswith(known))
            for known in self._hosts
        ):
            return True
        # A page that got here by rebinding has no key, so with keys any name will do.
        does_any_do = self._are_keys_needed and not self._hosts
        return does_any_do or self._is_private(name)

    def _is_private(self, name: str) -> bool:
        """A name that no stranger can point here: an address, or one known on this network only."""
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return "." not in name or name.endswith(LOCAL_SUFFIXES) or name == self._own_name

    def allows(self, incoming: Request) -> bool:
        """Whether the page that asks, if one asks, is our own or a listed one."""
        origin = incoming.headers.get("Origin", "").lower()
        if not origin or origin in self.listed:
            return True
        # Browsers set this themselves, and only where nobody can have changed it on the way.
        if incoming.headers.get("Sec-Fetch-Site") == "same-origin":
            return True
        # A proxy in front may have ended TLS, so the scheme is not compared. Its own header may
        # be believed here: a page can only add one after a preflight, which is refused.
        own = (incoming.headers.get("Host", ""), incoming.headers.get("X-Forwarded-Host", ""))
        return _authority(origin) in {_authority("http://" + host.lower()) for host in own if host}


def _current() -> Origins:
    found: Origins = current_app.extensions["origins"]
    return found


def check_origin() -> None:
    """Before every request, and before keys are looked at.

    Raises:
        Problem: 403 for a foreign host name or another site's page.
    """
    origins, is_socket = _current(), "websocket" in request.headers.get("Upgrade", "").lower()
    if not origins.knows_host(request.headers.get("Host", "")):
        detail = (
            "This server was asked under a name it does not know. If the name is right, add it "
            "to SUPERTONIC_ALLOWED_HOSTS."
        )
        raise Problem(403, detail)
    if (is_socket or request.method not in SAFE_METHODS) and not origins.allows(request):
        detail = (
            "Pages of other sites may not use this server. If this one may, add its origin to "
            "SUPERTONIC_CORS_ORIGINS; a proxy in front must pass the Host header on."
        )
        raise Problem(403, detail)


def finish(response: Response) -> Response:
    """After every request: headers that keep browsers careful, and CORS for listed origins."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    origins = _current()
    if not origins.listed:
        return response
    # Caches must not give the answer for one page to another.
    response.vary.add("Origin")
    origin = request.headers.get("Origin", "")
    if origin.lower() in origins.listed:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
            response.headers["Access-Control-Allow-Headers"] = _allowed_headers()
            response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
    return response


def _allowed_headers() -> str:
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    more = f", {wanted}" if HEADER_NAMES.fullmatch(wanted) else ""
    return ALLOWED_HEADERS + more


def _origins(text: str) -> list[str]:
    listed = [entry.strip().lower().rstrip("/") for entry in text.split(",") if entry.strip()]
    for entry in listed:
        if not ORIGIN.fullmatch(entry) or "*" in entry:
            raise SettingsError(
                f"SUPERTONIC_CORS_ORIGINS: {entry!r} is not an origin; expected scheme and host "
                "with the port if it is unusual, such as https://example.com"
            )
    return listed


def _hosts(text: str) -> tuple[str, ...]:
    listed = tuple(entry.strip().lower() for entry in text.split(",") if entry.strip())
    for entry in listed:
        if "/" in entry or ("*" in entry and entry != "*"):
            raise SettingsError(
                f"SUPERTONIC_ALLOWED_HOSTS: {entry!r} is not a host name; expected example.com, "
                ".example.com for all names below it, or * for any"
            )
    return tuple(entry if entry == "*" else _name(entry) for entry in listed)


def _name(host: str) -> str:
    """A Host header without its port; an IPv6 address without its brackets."""
    try:
        name = urlsplit("//" + host).hostname or ""
    except ValueError:
        return host.lower()
    return name.rstrip(".")


def _authority(url: str) -> tuple[str, int | None]:
    """Host and port of an origin; port 80 and 443 are left out, as browsers do."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url, None
    return parts.hostname or url, None if port in (80, 443) else port
