"""Who may do what: API keys, where they are set, and the admin key."""

import hashlib
import hmac

from flask import Request, current_app, request

from app.errors import Problem
from tasks.settings import Settings

# Open to everybody even where API keys are set: nothing here costs speech or shows a job.
PUBLIC = {"/", "/ui", "/livez", "/readyz", "/voices", "/metrics"}
# What proxies add; behind one, everybody seems to be this machine.
FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def _settings() -> Settings:
    settings: Settings = current_app.extensions["speech"].settings
    return settings


def _key_of(incoming: Request) -> bytes:
    scheme, _, key = incoming.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode()
    # A browser's EventSource and WebSocket cannot send headers.
    return (incoming.headers.get("X-API-Key") or incoming.args.get("api_key", "")).encode()


def owner_of(incoming: Request) -> str:
    """A fingerprint of the caller's API key, empty where no keys are set.

    Raises:
        Problem: 401 when keys are set and the request has none of them.
    """
    keys = _settings().api_key_list
    if not keys:
        return ""
    given = _key_of(incoming)
    # Compare with every key, so that the time taken says nothing about which one is near.
    if not any([hmac.compare_digest(given, key.encode()) for key in keys]):
        raise Problem(401, "Send one of this server's keys as `Authorization: Bearer KEY`.")
    return hashlib.sha256(given).hexdigest()[:16]


def check_access() -> None:
    """Before every request: API keys, where they are set."""
    is_public = request.path in PUBLIC or request.path.startswith("/static/")
    # /config/batch asks for the admin key instead, where there is one.
    is_admin = request.path == "/config/batch" and bool(_settings().admin_key)
    if not is_public and not is_admin:
        owner_of(request)


def check_admin() -> None:
    """Raise a 403 unless the request may change settings of the whole service."""
    key = _settings().admin_key
    if key:
        if not hmac.compare_digest(_key_of(request), key.encode()):
            raise Problem(403, "This needs the admin key, as `Authorization: Bearer KEY`.")
    elif not _is_from_here(request):
        raise Problem(403, "Without SUPERTONIC_ADMIN_KEY only this machine may change settings.")


def _is_from_here(incoming: Request) -> bool:
    """Whether a program on this machine asks, and not a proxy or a page of some other site."""
    if incoming.remote_addr not in ("127.0.0.1", "::1"):
        return False
    if any(name in incoming.headers for name in FORWARDING):
        return False
    origin = incoming.headers.get("Origin", "")
    return origin in ("", incoming.host_url.rstrip("/"))
