"""SSML, the XML in which other engines take text: what of it can be spoken becomes plain text with
marks. W3C, Speech Synthesis Markup Language 1.1.
"""

import re
from dataclasses import dataclass, field
from xml.parsers import expat

from supertonic.errors import SsmlError
from supertonic.marks import USUAL_VOICE, has_mark, is_mark
from supertonic.voices import VOICES

_BEGINNING = re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?<speak[\s/>]")
_TIME = re.compile(r"\+?([0-9]{1,6}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})\s?(m?s)")
# The seconds that "none" to "x-strong" stand for; SSML leaves them to the engine.
_STRENGTHS = {
    "none": 0.0,
    "x-weak": 0.1,
    "weak": 0.25,
    "medium": 0.5,
    "strong": 1.0,
    "x-strong": 1.5,
}
_PARAGRAPH = "\n\n"
# Or of a mark, or of a quotation, whose own end is in it.
_SENTENCE_ENDS = ".!?…:;。！？]\"'”’»"
_SPELLED = ("characters", "spell-out", "verbatim", "digits", "telephone")
# Their content is about the text, not part of it.
_SILENT = ("desc", "metadata", "meta", "lexicon")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Ssml:
    """``text`` with marks, and the tags that changed nothing: their content is read as it is."""

    text: str
    ignored: tuple[str, ...]


def is_ssml(text: str) -> bool:
    return _BEGINNING.match(text) is not None


def read_ssml(text: str) -> Ssml:
    """Read ``speak``, ``p``, ``s``, ``break``, ``sub``, ``voice`` and ``say-as`` that spells.

    Raises SsmlError, which says where the XML is broken or what an attribute should be.
    """
    reader = _Reader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = reader.doctype
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        where = f"line {error.lineno}, column {error.offset + 1}"
        raise SsmlError(f"it is no well-formed XML: {reason} at {where}") from None
    return Ssml("".join(reader.parts).strip(), tuple(reader.ignored)[:_MOST_NAMED])


@dataclass
class _Reader:
    """What an XML parser tells, as parts of the text; those of an open tag are the last ones."""

    parts: list[str] = field(default_factory=list)
    ignored: dict[str, None] = field(default_factory=dict)
    # Per open tag: its name, its attributes, and how many parts there were before it.
    _open: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    _voices: list[str] = field(default_factory=lambda: [USUAL_VOICE])

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in ("p", "paragraph"):
            self.parts.append(_PARAGRAPH)
        elif tag == "break":
            self._pause(attributes)
        elif tag == "voice":
            self._change_voice(attributes)
        elif tag not in ("speak", "s", "sentence", "sub", "say-as", *_SILENT):
            self.ignored[f"<{_short(tag)}>"] = None
        self._open.append((tag, attributes, len(self.parts)))

    def end(self, tag: str) -> None:
        _, attributes, begin = self._open.pop()
        if tag in ("p", "paragraph"):
            self.parts.append(_PARAGRAPH)
        elif tag in ("s", "sentence"):
            self._end_sentence(begin)
        elif tag == "voice":
            self._voices.pop()
            self.parts.append(_voice_mark(self._voices[-1]))
        elif tag == "sub":
            if "alias" not in attributes:
                raise SsmlError('<sub> needs an alias, as in <sub alias="Doctor">Dr.</sub>')
            self.parts[begin:] = [" ".join(attributes["alias"].split())]
        elif tag == "say-as":
            self._say_as(attributes.get("interpret-as", ""), begin)
        elif tag in _SILENT:
            del self.parts[begin:]

    def data(self, text: str) -> None:
        # Blank lines are how the XML is laid out.
        self.parts.append(re.sub(r"\s+", " ", text))

    def doctype(self, *_: object) -> None:
        raise SsmlError("it has a document type; leave <!DOCTYPE ...> out")

    def _pause(self, attributes: dict[str, str]) -> None:
        time, strength = attributes.get("time"), attributes.get("strength", "medium")
        if time is not None:
            found = _TIME.fullmatch(time.strip())
            if not found:
                raise SsmlError(f"<break time={_shown(time)}> should be as 1.5s or 500ms")
            self.parts.append(f" [pause {found[1]}{found[2]}] ")
        elif strength not in _STRENGTHS:
            allowed = ", ".join(_STRENGTHS)
            raise SsmlError(f"<break strength={_shown(strength)}> should be one of {allowed}")
        elif _STRENGTHS[strength]:
            self.parts.append(f" [pause {_STRENGTHS[strength]:g}s] ")

    def _change_voice(self, attributes: dict[str, str]) -> None:
        name = attributes.get("name", "").strip()
        if not name:
            # By gender or age: there is nothing to choose by.
            self.ignored["<voice> without a name"] = None
            name = self._voices[-1]
        elif not is_mark(_voice_mark(name).strip()):
            allowed = f"one of {', '.join(VOICES)}, or a mixture such as M1(2)+F5"
            raise SsmlError(f"<voice name={_shown(name)}> should be {allowed}")
        self._voices.append(name)
        self.parts.append(_voice_mark(name))

    def _end_sentence(self, begin: int) -> None:
        content = "".join(self.parts[max(begin, len(self.parts) - 2) :]).rstrip()
        if content and content[-1] not in _SENTENCE_ENDS:
            self.parts.append(".")
        self.parts.append(" ")

    def _say_as(self, how: str, begin: int) -> None:
        if how in _SPELLED:
            self.parts[begin:] = [_spelled(part) for part in self.parts[begin:]]
        else:
            self.ignored[f"<say-as interpret-as={_shown(how)}>"] = None


def _spelled(part: str) -> str:
    """A space before each character; marks stay whole."""
    return (
        part if has_mark(part) else "".join(f" {character}" for character in "".join(part.split()))
    )


def _voice_mark(name: str) -> str:
    return f" [voice {name}] "


def _shown(value: str) -> str:
    return '"' + "".join(char if char.isprintable() else " " for char in _short(value)) + '"'


def _short(value: str) -> str:
    """As it may stand in a header."""
    return value if len(value) <= 30 else value[:29] + "…"
