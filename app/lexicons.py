"""How words are read: as a request says, else as this server's own lexicon says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.reading import unique_names
from app.schemas import Manner
from supertonic.characters import LANGUAGES
from supertonic.errors import LexiconError
from supertonic.lexicon import Entries, Lexicon
from tasks.settings import Settings, SettingsError


class Lexicons:
    """The server's lexicon, read once.

    Raises:
        SettingsError: the file cannot be read, or holds something else than a lexicon.
    """

    def __init__(self, settings: Settings) -> None:
        # By language: its own entries come before those for all.
        self._own: dict[str, tuple[Entries, ...]] = {}
        if not settings.lexicon:
            return
        try:
            self._own = _by_language(_read(Path(settings.lexicon)))
        except (OSError, ValueError, RecursionError, LexiconError) as error:
            # UnicodeDecodeError and JSONDecodeError are ValueErrors.
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SettingsError(f"SUPERTONIC_LEXICON={settings.lexicon!r}: {reason}") from None

    def of(self, body: Manner) -> Lexicon | None:
        """What a request is read with, None where nothing is read in another way."""
        own = self._own.get(body.language, ())
        layers = (Entries(body.lexicon), *own) if body.lexicon else own
        return Lexicon(*layers) if layers else None


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique_names)
    if not isinstance(found, dict):
        raise ValueError('expected an object such as {"SQL": "sequel"}')
    return found


def _by_language(found: Mapping[str, Any]) -> dict[str, tuple[Entries, ...]]:
    """An entry is for all languages; an object named after one holds entries for it alone."""
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    if unknown := sorted(parts.keys() - set(LANGUAGES)):
        raise ValueError(f"{unknown[0]!r} is no language; there are {', '.join(LANGUAGES)}")
    common = Entries({name: spoken for name, spoken in found.items() if name not in parts})
    return {
        language: (Entries(parts[language]), common) if language in parts else (common,)
        for language in LANGUAGES
    }
