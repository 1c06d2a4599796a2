"""A document of a book as paragraphs: what is read aloud of it, in order."""

import re
from dataclasses import dataclass, field
from html.entities import html5
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, XMLParser

from app.archive import UnreadableBook
from app.charsets import Undecodable, decode
from app.errors import shorten

# What stands inside a line; every other element is a paragraph, or holds some.
INLINE = set(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd mark q rb ruby s "
    "samp small span strike strong sub sup time tt u var wbr".split()
)
SILENT = set(
    "head script style template noscript svg math audio video object iframe canvas rt rp nav "
    "select button textarea".split()
)
# Of epub:type, and of role with "doc-" before it.
SILENT_TYPES = set(
    "noteref footnote footnotes rearnote rearnotes endnote endnotes pagebreak backlink "
    "referrer page-list".split()
)
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
CELLS = {"td", "th"}
ENDS = tuple(".,;:!?")
# Of elements in each other. No book comes near, and a parser keeps something of each.
MAX_DEPTH = 200
# Of all documents of a book: each takes a parser written in Python some microseconds.
MAX_ELEMENTS = 500_000
TOO_DEEP = f"its elements are nested more than {MAX_DEPTH} deep"
INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
NAMED = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
XML_NAMES = {"amp", "lt", "gt", "quot", "apos"}
ENCODING = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, without line breaks."""

    text: str
    is_heading: bool = False


@dataclass
class Page:
    """A document: its paragraphs, and before which of them the elements with an id stand."""

    blocks: list[Block] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    has_picture: bool = False
    is_cover: bool = False  # as it says itself
    link_chars: int = 0

    @property
    def chars(self) -> int:
        return sum(len(block.text) for block in self.blocks)


class Allowance:
    """How many elements of a book may still be read."""

    def __init__(self) -> None:
        self.left = MAX_ELEMENTS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise UnreadableBook(f"has more than {MAX_ELEMENTS} elements, which no book needs")


def read_page(data: bytes, name: str, allowance: Allowance) -> Page:
    """UnreadableBook: the document is not XML, which every EPUB's must be."""
    reader = _Reader(allowance)
    _parse(data, name, reader)
    return reader.page


def read_tree(data: bytes, name: str, allowance: Allowance) -> Element:
    """A document about the book. UnreadableBook: it is not XML."""
    builder = _Builder(allowance)
    _parse(data, name, builder)
    return builder.root


def local(tag: object) -> str:
    """The name of an element or attribute without its namespace."""
    return tag.rpartition("}")[2].lower() if isinstance(tag, str) else ""


def attributes(given: dict[str, str]) -> dict[str, str]:
    return {local(name): value for name, value in given.items()}


def _parse(data: bytes, name: str, target: Any) -> None:
    found = ENCODING.search(data[:400])
    try:
        text = _spelled_out(decode(data, found[1].decode() if found else ""))
        parser = XMLParser(target=target)
        # At once: a parser begins anew with what was cut off.
        parser.feed(text)
        parser.close()
        return
    except Undecodable as error:
        why = str(error)
    except ParseError as error:
        why = f"it is not well-formed XML ({error})"
    except DefusedXmlException:
        why = "it defines entities or asks for files elsewhere, which is not read"
    except ValueError as error:
        why = shorten(str(error))
    raise UnreadableBook(f"cannot be read at {shorten(name)}: {why}")


def _spelled_out(text: str) -> str:
    """HTML's names for characters, such as ``&nbsp;``, are none in XML without a definition."""

    def character(match: re.Match[str]) -> str:
        if match[1] in XML_NAMES:
            return match[0]
        meant = html5.get(f"{match[1]};", match[0])
        return meant.replace("&", "&amp;").replace("<", "&lt;")

    return NAMED.sub(character, text)


class _Depth:
    """How many elements are open."""

    def __init__(self, allowance: Allowance) -> None:
        self.depth, self._allowance = 0, allowance

    def enter(self) -> None:
        self._allowance.take()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)

    def leave(self) -> None:
        self.depth -= 1


class _Builder:
    """What the parser tells, put into a tree."""

    def __init__(self, allowance: Allowance) -> None:
        self._tree, self._depth = TreeBuilder(), _Depth(allowance)
        self.root = Element("")

    def start(self, tag: str, given: dict[str, str]) -> None:
        self._depth.enter()
        self._tree.start(tag, given)

    def end(self, tag: str) -> None:
        self._depth.leave()
        self._tree.end(tag)

    def data(self, text: str) -> None:
        self._tree.data(text)

    def close(self) -> None:
        self.root = self._tree.close()


class _Reader:
    """What the parser tells, put into a page."""

    def __init__(self, allowance: Allowance) -> None:
        self.page = Page()
        self._parts: list[str] = []
        self._silent = self._links = self._rows = 0
        self._heading = False
        self._depth = _Depth(allowance)

    def start(self, tag: str, given: dict[str, str]) -> None:
        self._depth.enter()
        name, attrs = local(tag), attributes(given)
        self.page.has_picture |= name in ("img", "image", "svg")
        if self._silent:
            self._silent += 1
            return
        if name not in INLINE | SILENT:
            self._break(name)
        if "id" in attrs:
            self.page.places.setdefault(attrs["id"], len(self.page.blocks))
        types = _types(attrs)
        self.page.is_cover |= "cover" in types
        if _is_silent(name, attrs, types):
            self._silent = 1
            if name == "math":
                self._parts.append(attrs.get("alttext", ""))
            return
        self._links += name == "a"
        self._rows += name == "tr"
        self._heading |= name in HEADINGS

    def end(self, tag: str) -> None:
        self._depth.leave()
        if self._silent:
            self._silent -= 1
            return
        name = local(tag)
        self._links -= name == "a"
        self._rows -= name == "tr"
        if name not in INLINE | CELLS:
            self._break(name)
        if name in HEADINGS:
            self._heading = False

    def data(self, text: str) -> None:
        if not self._silent:
            self._parts.append(text)
            if self._links:
                self.page.link_chars += len(text.strip())

    def close(self) -> None:
        self._break("")

    def _break(self, name: str) -> None:
        """A paragraph ends; inside a row of a table, a cell, and in a line, the line."""
        if name == "br":
            self._parts.append(" ")
        elif self._rows and name != "tr":
            self._parts.append(self._between(name))
        else:
            text = " ".join("".join(self._parts).split())
            self._parts.clear()
            if text:
                self.page.blocks.append(Block(text, self._heading))

    def _between(self, name: str) -> str:
        """What parts a cell from the one before it, or a paragraph inside of one."""
        while self._parts and not self._parts[-1].strip():
            self._parts.pop()
        if name not in CELLS or not self._parts or self._parts[-1].rstrip().endswith(ENDS):
            return " "
        return ", "


def _types(attrs: dict[str, str]) -> set[str]:
    # epub:type; an input's or a script's own type says nothing of this.
    roles = [role.removeprefix("doc-") for role in attrs.get("role", "").split()]
    return {*attrs.get("type", "").lower().split(), *roles}


def _is_silent(name: str, attrs: dict[str, str], types: set[str]) -> bool:
    return (
        name in SILENT
        or not SILENT_TYPES.isdisjoint(types)
        or "hidden" in attrs
        or attrs.get("aria-hidden") == "true"
        or INVISIBLE.search(attrs.get("style", "")) is not None
    )
