"""Who may do what: API keys where they are set, the admin key, and how often one may ask.

``app/origins.py`` says before this which web pages may ask at all.
"""

from flask import Request, Response, current_app, g, request

from app.errors import Problem
from app.keys import Keyring
from app.limits import SpeechLimit, Standing

# Open to everybody even where API keys are set: nothing here costs speech or shows a job.
PUBLIC = {"/", "/ui", "/livez", "/readyz", "/voices", "/metrics", "/openapi.json"}
# Open WebUI asks for these without a key. The list of models stays closed: clients try keys there.
PUBLIC |= {"/v1/audio/voices", "/v1/audio/models"}
ADMIN_PATHS = {"/config/batch", "/dead-letters"}
# Each of these makes speech, so each counts against a rate limit, well-formed or not.
SPEAKING = {"/synthesize", "/synthesize/stream", "/synthesize/long", "/v1/audio/speech"}
# What proxies add; behind one, everybody seems to be this machine.
FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def keyring() -> Keyring:
    found: Keyring = current_app.extensions["keyring"]
    return found


def _given_key(incoming: Request) -> str:
    scheme, _, key = incoming.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    # A browser's EventSource and WebSocket cannot send headers.
    return incoming.headers.get("X-API-Key") or incoming.args.get("api_key", "")


def owner_of(incoming: Request) -> str:
    """A fingerprint of the caller's API key, empty where no keys are set.

    Raises:
        Problem: 401 when keys are set and the request has none of them.
    """
    if not keyring().are_needed:
        return ""
    given = _given_key(incoming)
    key = keyring().find(given)
    if key is None:
        raise _refused(
            "The key that was sent is none of this server's" if given else "A key is needed"
        )
    return key.fingerprint


def _refused(why: str) -> Problem:
    return Problem(401, f"{why}; send one of its keys as `Authorization: Bearer KEY`.")


def check_access() -> None:
    """Before every request: API keys where they are set, then the rate limit."""
    is_public = request.path in PUBLIC or request.path.startswith("/static/")
    # These ask for the admin key instead, where there is one.
    is_admin = request.path in ADMIN_PATHS and keyring().has_admin
    if is_public or is_admin or request.method == "OPTIONS":
        return
    owner = owner_of(request)
    if request.method == "POST" and request.path in SPEAKING:
        limit: SpeechLimit = current_app.extensions["speech_limit"]
        g.standing = limit.count(owner or request.remote_addr or "")


def tell_standing(response: Response) -> Response:
    """After every request that counted: how many more are allowed, and until when."""
    standing: Standing | None = g.get("standing")
    if standing is not None:
        response.headers.extend(standing.headers())
    return response


class Visitor:
    """Who sits at the other end of a connection that carries many texts."""

    def __init__(self, incoming: Request) -> None:
        self.owner = owner_of(incoming)
        self._address = incoming.remote_addr or ""
        self._keyring = keyring()
        self._limit: SpeechLimit = current_app.extensions["speech_limit"]

    def check_text(self) -> None:
        """Before each text.

        Raises:
            Problem: 401 when the key was revoked meanwhile, 429 when the rate limit is reached.
        """
        if self.owner and not self._keyring.knows(self.owner):
            raise _refused("The key is no longer one of this server's")
        self._limit.count(self.owner or self._address)


def check_admin() -> None:
    """Raise a 403 unless the request may change settings of the whole service."""
    if keyring().has_admin:
        if not keyring().is_admin(_given_key(request)):
            raise Problem(403, "This needs the admin key, as `Authorization: Bearer KEY`.")
    elif not _is_from_here(request):
        raise Problem(403, "Without SUPERTONIC_ADMIN_KEY only this machine may change settings.")


def _is_from_here(incoming: Request) -> bool:
    """Whether a program or page of this machine asks, and not a proxy for somebody else."""
    if incoming.remote_addr not in ("127.0.0.1", "::1"):
        return False
    return not any(name in incoming.headers for name in FORWARDING)
