"""EPUB 2 and 3 to a text with chapters, as ``POST /synthesize/long`` takes them.

An EPUB is a ZIP archive: ``META-INF/container.xml`` names the package document, that lists the
documents and their order (the spine), and a navigation document or an NCX gives chapters their
titles. Whatever is in it comes from a stranger (app/archive.py, app/xhtml.py bound it).
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from app.archive import Archive, UnreadableBook
from app.chapters import is_shown, title_of
from app.errors import shorten
from app.xhtml import Allowance, Block, Page, attributes, local, read_page, read_tree
from supertonic.characters import is_speakable

MAX_NAME_CHARS = 200
CONTAINER = "META-INF/container.xml"
# What shops add to books that only their own readers open.
LOCKS = ("META-INF/rights.xml", "META-INF/license.lcpl", "META-INF/sinf.xml")
DOCUMENTS = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml"}
NCX = "application/x-dtbncx+xml"
# Of the documents about the book; each becomes a tree in memory.
MAX_TREE_BYTES = 2_000_000
# A page with a picture and no more than this is a cover, where the book calls it one.
COVER_CHARS = 200


@dataclass(frozen=True, slots=True)
class Ebook:
    """``text`` has a line ``# The title`` before each chapter."""

    title: str
    author: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    path: str
    media_type: str
    properties: frozenset[str]
    fallback: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table of contents."""

    path: str
    fragment: str
    title: str


@dataclass
class Package:
    """What the package document says."""

    title: str = ""
    authors: list[str] = field(default_factory=list)
    language: str = ""
    items: dict[str, Item] = field(default_factory=dict)
    spine: list[str] = field(default_factory=list)
    toc: str = ""
    guide: dict[str, str] = field(default_factory=dict)  # kind to href


class _Book:
    """The archive, and how much of it may still be read."""

    def __init__(self, data: bytes) -> None:
        self.archive, self._allowance = Archive(data), Allowance()

    def __contains__(self, name: str) -> bool:
        return name in self.archive

    def tree(self, name: str) -> Element:
        return read_tree(self.archive.read(name, MAX_TREE_BYTES), name, self._allowance)

    def page(self, name: str) -> Page:
        return read_page(self.archive.read(name), name, self._allowance)


def read_epub(data: bytes, most_chars: int) -> Ebook:
    """The book in these bytes.

    Raises:
        UnreadableBook: it is broken, protected, empty, or has more text than ``most_chars``.
    """
    book = _Book(data)
    for name in LOCKS:
        if name in book:
            raise UnreadableBook(f"is protected by DRM ({name}); only books without can be read")
    package = _package(book)
    _refuse_encrypted(book, package)
    contents = _contents(book, package)
    text = "\n\n".join(_lines(book, package, contents, most_chars))
    if not any(map(is_speakable, text.split("\n"))):
        raise UnreadableBook("holds no text that could be spoken; its pages may be pictures")
    return Ebook(_name(package.title), _name(", ".join(package.authors)), package.language, text)


def _name(text: str) -> str:
    """Of a book, as the fields ``title`` and ``author`` may be."""
    shown = "".join(filter(is_shown, " ".join(text.split()))).strip()
    return shown if len(shown) <= MAX_NAME_CHARS else shown[: MAX_NAME_CHARS - 1] + "…"


# -- the package -----------------------------------------------------------------------------


def _package(book: _Book) -> Package:
    if CONTAINER not in book:
        raise UnreadableBook(f"is a ZIP archive but no EPUB: there is no {CONTAINER} in it")
    rootfiles = _all(book.tree(CONTAINER), "rootfile")
    paths = [attributes(each.attrib).get("full-path", "") for each in rootfiles]
    if not paths:
        raise UnreadableBook(f"names no package document in {CONTAINER}")
    path = _resolve("", paths[0])[0]
    package, roles = Package(), dict[str, str]()
    authors: list[tuple[str, str, str]] = []
    root = book.tree(path)
    for element in root.iter():
        name, attrs = local(element.tag), attributes(element.attrib)
        text = " ".join("".join(element.itertext()).split()) if name in _METADATA else ""
        if name == "title":
            package.title = package.title or text
        elif name == "language":
            package.language = package.language or text
        elif name == "creator" and text:
            authors.append((attrs.get("id", ""), attrs.get("role", ""), text))
        elif name == "meta" and attrs.get("property") == "role":
            roles[attrs.get("refines", "").removeprefix("#")] = text
        elif name == "item":
            package.items[attrs.get("id", "")] = _item(path, attrs)
        elif name == "spine":
            package.toc = attrs.get("toc", "")
        elif name == "itemref" and attrs.get("linear", "yes") != "no":
            package.spine.append(attrs.get("idref", ""))
        elif name == "reference" and "href" in attrs:
            package.guide.setdefault(attrs.get("type", "").lower(), attrs["href"])
    package.guide = {kind: _resolve(path, href)[0] for kind, href in package.guide.items()}
    package.authors = [
        text for its_id, role, text in authors if (role or roles.get(its_id, "aut")) == "aut"
    ]
    if not package.spine:
        raise UnreadableBook(f"has no order of reading: the spine in {shorten(path)} is empty")
    return package


_METADATA = {"title", "language", "creator", "meta"}


def _item(base: str, attrs: dict[str, str]) -> Item:
    href = attrs.get("href", "")
    # What is elsewhere, such as a film, is not read.
    path = "" if urlsplit(href).scheme else _resolve(base, href)[0]
    properties = frozenset(attrs.get("properties", "").split())
    return Item(path, attrs.get("media-type", "").lower(), properties, attrs.get("fallback", ""))


def _resolve(base: str, href: str) -> tuple[str, str]:
    """A path in the archive and a fragment, as a document at ``base`` writes them."""
    before, _, fragment = href.strip().partition("#")
    written = unquote(before)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(base), written)) if written else base
    if path.startswith(("/", "../")) or path == "..":
        raise UnreadableBook(f"names {shorten(href)}, which would be outside of the archive")
    return path, unquote(fragment)


def _all(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if local(element.tag) == name]


def _refuse_encrypted(book: _Book, package: Package) -> None:
    """Raises UnreadableBook where a document is encrypted. Of fonts, which many books scramble, it
    does not matter.
    """
    name = "META-INF/encryption.xml"
    if name not in book:
        return
    read = {item.path for item in package.items.values() if item.media_type in (*DOCUMENTS, NCX)}
    for reference in _all(book.tree(name), "cipherreference"):
        if _resolve("", attributes(reference.attrib).get("uri", ""))[0] in read:
            raise UnreadableBook(
                "is protected by DRM: its text is encrypted; only books without can be read"
            )


# -- the table of contents -------------------------------------------------------------------


def _contents(book: _Book, package: Package) -> list[Entry]:
    """The lines of the table of contents, in its order; none where there is no table."""
    for item in package.items.values():
        if "nav" in item.properties:
            entries = _navigation(book.tree(item.path), item, package)
            if entries:
                return entries
    tables = [package.items[package.toc]] if package.toc in package.items else []
    tables += [item for item in package.items.values() if item.media_type == NCX]
    for item in tables[:1]:
        return list(_ncx(book.tree(item.path), item.path))
    return []


def _navigation(root: Element, item: Item, package: Package) -> list[Entry]:
    entries: list[Entry] = []
    for nav in _all(root, "nav"):
        kinds = attributes(nav.attrib).get("type", "").split()
        for link in _all(nav, "a"):
            attrs = attributes(link.attrib)
            href = attrs.get("href", "")
            if not href or urlsplit(href).scheme:
                continue
            if "toc" in kinds:
                title = " ".join("".join(link.itertext()).split())
                entries.append(Entry(*_resolve(item.path, href), title))
            elif "landmarks" in kinds:
                kind = attrs.get("type", "").lower()
                package.guide.setdefault(kind, _resolve(item.path, href)[0])
    return entries


def _ncx(root: Element, base: str) -> Iterator[Entry]:
    for point in _all(root, "navpoint"):
        labels = [child for child in point if local(child.tag) == "navlabel"]
        targets = [child for child in point if local(child.tag) == "content"]
        src = attributes(targets[0].attrib).get("src", "") if targets else ""
        if labels and src and not urlsplit(src).scheme:
            title = " ".join("".join(labels[0].itertext()).split())
            yield Entry(*_resolve(base, src), title)


# -- the text --------------------------------------------------------------------------------


def _lines(
    book: _Book, package: Package, contents: Sequence[Entry], most_chars: int
) -> Iterator[str]:
    """Titles and paragraphs, in the order of the spine."""
    listed: dict[str, list[Entry]] = {}
    for entry in contents:
        listed.setdefault(entry.path, []).append(entry)
    left, seen = most_chars, set[str]()
    for item in _documents(package):
        if item.path in seen or "nav" in item.properties:
            continue
        page = book.page(item.path)
        is_first = not seen
        seen.add(item.path)
        if _is_cover(page, item, package, is_first) or _is_table(page, item, package):
            continue
        for line in _page_lines(page, listed.get(item.path, [])):
            left -= len(line) + 2
            if left < 0:
                raise UnreadableBook(
                    f"has more than {most_chars} characters of text; at most {most_chars} are "
                    "allowed"
                )
            yield line


def _documents(package: Package) -> Iterator[Item]:
    for idref in package.spine:
        item = package.items.get(idref)
        if item is None:
            raise UnreadableBook(f"names {shorten(idref)} in its spine and nowhere else")
        # A picture as a page may have a text in its place.
        for _ in range(5):
            if item.media_type in DOCUMENTS or item.fallback not in package.items:
                break
            item = package.items[item.fallback]
        if item.media_type in DOCUMENTS and item.path:
            yield item


def _is_cover(page: Page, item: Item, package: Package, is_first: bool) -> bool:
    if not page.blocks and is_first:
        return True
    is_called_so = page.is_cover or package.guide.get("cover") == item.path
    return is_called_so and page.has_picture and page.chars <= COVER_CHARS


def _is_table(page: Page, item: Item, package: Package) -> bool:
    """A page that only lists chapters. A book's guide may call its first chapter so, too."""
    return package.guide.get("toc") == item.path and page.link_chars * 2 > page.chars


def _page_lines(page: Page, entries: Sequence[Entry]) -> Iterator[str]:
    marks = [(page.places.get(entry.fragment, 0), entry.title) for entry in entries]
    if not any(title_of(f"# {title}") for _, title in marks):
        heads = ((index, block.text) for index, block in enumerate(page.blocks) if block.is_heading)
        marks = [mark for mark in heads if title_of(f"# {mark[1]}")][:1]
    marks.sort(key=lambda mark: mark[0])
    starts = [*(start for start, _ in marks), len(page.blocks)]
    yield from map(_paragraph, page.blocks[: starts[0]])
    for (start, title), end in zip(marks, starts[1:], strict=True):
        if title_of(f"# {title}"):
            yield f"# {title}"
        yield from map(_paragraph, _without(title, page.blocks[start:end]))


def _paragraph(block: Block) -> str:
    # With a space before it, it is not taken for a chapter's title.
    return f" {block.text}" if block.text.startswith("#") else block.text


def _without(title: str, blocks: Sequence[Block]) -> Sequence[Block]:
    """What follows a title that has been spoken: not the same words again as headings."""
    told = f" {_words(title)} "
    for index, block in enumerate(blocks):
        words = _words(block.text)
        is_repeated = f" {words} " in told if block.is_heading else words == told.strip()
        if not words or not is_repeated:
            return blocks[index:]
    return []


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
