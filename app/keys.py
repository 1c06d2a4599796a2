"""API keys: made here, kept elsewhere only as hashes.

``python -m app keys new anna`` prints a fresh key, to be given away, and the line
``anna:sha256:…`` that stands for it in a setting or a keys file. A key holds 256 random bits, so
its plain SHA-256 cannot be turned back by guessing. Keys people chose themselves are still
accepted as they are; ``python -m app keys hash`` makes the line for one of those.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

# A plain key may well be 64 hex digits, so a hash says that it is one.
HASHED = re.compile(r"(?P<name>[\w.@-]{1,64}):sha256:(?P<digest>[0-9a-f]{64})")
FINGERPRINT_CHARS = 16


@dataclass(frozen=True, slots=True)
class Key:
    """What the server knows of a key: a name for people, and its SHA-256 in hex."""

    name: str
    digest: str
    is_plain: bool = False

    @property
    def fingerprint(self) -> str:
        """Marks whose a job is. It was made like this before keys were hashed, too."""
        return self.digest[:FINGERPRINT_CHARS]


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    return "stk_" + secrets.token_urlsafe(32)


def parse_key(entry: str) -> Key:
    """A ``name:sha256:hex`` line, or a plain key.

    Raises:
        ValueError: it is neither; the text does not repeat what may be a secret.
    """
    if match := HASHED.fullmatch(entry):
        return Key(match["name"], match["digest"])
    if ":sha256:" in entry:
        raise ValueError("expected NAME:sha256: and 64 hex digits")
    digest = digest_of(entry)
    return Key(digest[:8], digest, is_plain=True)


def parse_keys(entries: Iterable[str], variable: str) -> tuple[Key, ...]:
    """Keys of a setting.

    Raises:
        SettingsError: one of them cannot be read.
    """
    keys = []
    for number, entry in enumerate(filter(None, map(str.strip, entries)), 1):
        try:
            keys.append(parse_key(entry))
        except ValueError as error:
            raise SettingsError(f"{variable}: key {number}: {error}") from None
    return tuple(keys)


class KeysFile:
    """A file of ``name:sha256:hex`` lines, read again whenever it has changed."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        try:
            self._seen, (self._keys, mistakes) = self._stamp(), self._read()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"SUPERTONIC_API_KEYS_FILE: cannot be read: {error}; "
                "make a key with `python -m app keys new NAME`"
            ) from None
        if mistakes:
            raise SettingsError(f"SUPERTONIC_API_KEYS_FILE: {mistakes[0]}")

    def keys(self) -> tuple[Key, ...]:
        """The keys now in the file; those read last while it cannot be read, as during a copy."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp != self._seen:
                    self._keys, mistakes = self._read()
                    self._seen = stamp
                    logger.info("read %s again: %d keys", self.path, len(self._keys))
                    for mistake in mistakes:
                        logger.error("%s: %s; the line is ignored", self.path, mistake)
            except (OSError, UnicodeDecodeError) as error:
                if self._seen is not None:
                    logger.error("keeping the last keys: %s cannot be read: %s", self.path, error)
                self._seen = None
            return self._keys

    def _stamp(self) -> tuple[int, int, int]:
        found = self.path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> tuple[tuple[Key, ...], list[str]]:
        keys, mistakes = [], []
        for number, line in enumerate(self.path.read_text("utf-8").splitlines(), 1):
            line = line.partition("#")[0].strip()
            if match := HASHED.fullmatch(line):
                keys.append(Key(match["name"], match["digest"]))
            elif line:
                mistakes.append(f"line {number} is not NAME:sha256: and 64 hex digits")
        return tuple(keys), mistakes


class Keyring:
    """The keys of a server: from the settings, and from the file if there is one."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: a key or the file cannot be read.
        """
        self._fixed = parse_keys(settings.api_keys.split(","), "SUPERTONIC_API_KEYS")
        if settings.api_keys and not self._fixed:
            # As "$ONE,$TWO" is where neither is set. It must not open the server to everybody.
            raise SettingsError("SUPERTONIC_API_KEYS: holds no key; leave it empty to need none")
        self._file = KeysFile(settings.api_keys_file) if settings.api_keys_file else None
        admin = parse_keys([settings.admin_key], "SUPERTONIC_ADMIN_KEY")
        if settings.admin_key and not admin:
            raise SettingsError("SUPERTONIC_ADMIN_KEY: is blank; leave it empty to have none")
        self._admin = admin[0] if admin else None

    @property
    def are_needed(self) -> bool:
        """Whether requests need a key. A file without keys lets nobody in, not everybody."""
        return bool(self._fixed) or self._file is not None

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    def find(self, given: str) -> Key | None:
        """The API key that was given, None if there is no such key."""
        return _match(given, self._all())

    def knows(self, fingerprint: str) -> bool:
        """Whether the key with this fingerprint is still good."""
        return any(key.fingerprint == fingerprint for key in self._all())

    def is_admin(self, given: str) -> bool:
        return self._admin is not None and _match(given, [self._admin]) is not None

    def plain(self) -> list[str]:
        """Variables that hold a key itself."""
        found = {"SUPERTONIC_API_KEYS": any(key.is_plain for key in self._fixed)}
        found["SUPERTONIC_ADMIN_KEY"] = self._admin is not None and self._admin.is_plain
        return [variable for variable, is_plain in found.items() if is_plain]

    def _all(self) -> tuple[Key, ...]:
        return self._fixed + (self._file.keys() if self._file else ())


def _match(given: str, keys: Iterable[Key]) -> Key | None:
    digest, found = digest_of(given), None
    # Compares with every key, so that the time taken says nothing about which one is near.
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found
