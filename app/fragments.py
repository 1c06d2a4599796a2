"""Text that comes in fragments, as a language model writes it: whole sentences go on to be spoken.

A sentence is whole when the next one has begun: "It is 3." may yet become "It is 3.5".
"""

import re
from typing import Any

from app.errors import Problem, field_problem
from app.schemas import BeginBody, WishBody
from app.submit import read, split
from supertonic.characters import LANGUAGES
from supertonic.chunking import sentences_end
from supertonic.lexicon import Lexicon
from supertonic.marks import last_pause_end, last_voice, without_last
from tasks.settings import Settings

# What waits is joined up to this length: sentences that are spoken together sound better.
JOINED_CHARS = 1000
_PARAGRAPH = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")


class Fragments:
    """One text of which more is on its way."""

    def __init__(self, body: BeginBody, settings: Settings, lexicon: Lexicon | None = None) -> None:
        """Raises Problem: 422 for a language in which nobody knows what a sentence is."""
        if body.language not in LANGUAGES:
            detail = f"must be one of {', '.join(LANGUAGES)}"
            raise field_problem("language", body.language, detail)
        self.body = body
        self.settings = settings
        self.lexicon = lexicon
        self.n_texts = 0
        self.last: WishBody | None = None  # that went on
        # What is not spoken yet, and the mark of the voice in which it begins.
        self._rest = self._mark = ""
        self._before = "", ""

    def add(self, text: str) -> WishBody | None:
        """What is whole now, to be spoken next.

        Raises:
            Problem: 422 for a text that is too long, also as the lexicon has it read, or a sentence
                without an end; nothing of this text is kept then.
        """
        most = self.settings.max_text_chars
        if len(text) > most:
            detail = f"has {len(text)} characters; at most {most} are allowed"
            raise field_problem("text", text, detail)
        begun = self._rest + text
        # Pauses, also such as are not whole yet, are for what is before them.
        known = without_last(begun)
        voice_end, mark = last_voice(known)
        paragraphs = (match.end() for match in _PARAGRAPH.finditer(known))
        end = max(last_pause_end(known), voice_end, *paragraphs, 0)
        whole, last = known[:end].strip(), " ".join(known[end:].split())
        parting = " " if end == voice_end else "\n\n"
        end = sentences_end(last)
        if end:
            whole, last = f"{whole}{parting}{last[:end]}".lstrip(), last[end:].lstrip()
        rest = last + _SPACE.sub(_shortest, begun[len(known) :])
        wish = self._wish(whole, self.body.pause_s)
        if wish is None and last_pause_end(whole):
            # Of marks alone; they belong to what is before, if that still waits.
            rest, mark = f"{whole} {rest}", ""
        if len(rest) > most:
            limit = f"{most} characters without the end of a sentence"
            raise field_problem("text", rest, f"has more than {limit}; send a flush in between")
        self._before = self._rest, self._mark
        self._rest, self._mark = rest, mark or self._mark
        return wish

    def flush(self, is_end: bool = False) -> WishBody | None:
        """All that is there, whole or not. Nothing of it is left, also where it is a Problem: it
        could never be spoken.
        """
        text = self._rest
        try:
            return self._wish(text, self.body.end_pause_s if is_end else self.body.pause_s)
        finally:
            self._before = text, self._mark
            self._rest, self._mark = "", last_voice(text)[1] or self._mark

    def _wish(self, text: str, end_pause_s: float) -> WishBody | None:
        if not text or text.isspace():
            return None
        fields: dict[str, Any] = self.body.model_dump() | {"end_pause_s": end_pause_s}
        if self._mark:
            text = f"{self._mark} {text}"
        # Checked when it began: a lexicon takes a millisecond.
        wish = WishBody.model_construct(text=text, **fields)
        paragraphs = read(wish, self.lexicon, self.settings)
        try:
            split(wish, paragraphs, self.settings)
        except Problem:
            # Blanks, or a smiley: nothing that could be spoken, and no mistake.
            return None
        return wish

    def went_on(self, wish: WishBody) -> None:
        self.last, self.n_texts = wish, self.n_texts + 1

    def joined(self, wish: WishBody) -> WishBody | None:
        """The last that went on with this one behind it, unless it would be long."""
        last = self.last
        if last is None or len(last.text) + len(wish.text) > JOINED_CHARS:
            return None
        _, mark = last_voice(last.text)
        # The same voice goes on.
        text = wish.text.removeprefix(f"{mark} ") if mark else wish.text
        both = wish.model_copy(update={"text": f"{last.text} {text}"})
        try:
            read(both, self.lexicon, self.settings)
        except Problem:
            return None
        self.last = both
        return both

    def take_back(self) -> None:
        """The last that was whole could not go on: the text that made it so has not come."""
        self._rest, self._mark = self._before


def _shortest(space: re.Match[str]) -> str:
    """White space that parts as much."""
    return "\n" * min(2, space[0].count("\n")) or " "
