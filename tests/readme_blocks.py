"""Takes README.md apart: fenced blocks with the note before each, tables, and what is named.

A note is an HTML comment on the line before a fence, invisible to readers of the page:
``<!-- not run: reason -->`` or ``<!-- answer of: POST /synthesize {"text": "Hello."} -->``.
"""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``note`` is a comment's kind and ``about`` the rest of it."""

    heading: str
    language: str
    text: str
    note: str
    about: str


def blocks(language: str, note: str | None = None) -> list[Block]:
    """The blocks in one language, of one kind of note if given ("" means without any)."""
    return [
        block
        for block in _all_blocks()
        if block.language == language and note in (None, block.note)
    ]


def scripts(language: str) -> dict[str, str]:
    """What a reader would run, by heading: blocks under one heading continue each other."""
    joined: dict[str, str] = {}
    for block in blocks(language, note=""):
        joined[block.heading] = joined.get(block.heading, "") + block.text
    return joined


def table(heading: str, columns: int) -> list[list[str]]:
    """Cells of the rows with so many columns under a heading, without the table's own head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `") for cell in line[1:-1].split("|")] for line in lines]
    # A row of dashes ends a table's head, which is the row before it.
    heads = {index for index, row in enumerate(rows) if row[0].startswith("---")}
    heads |= {index - 1 for index in heads}
    return [row for i, row in enumerate(rows) if i not in heads and len(row) == columns]


def section(heading: str) -> str:
    """The text from one heading to the next of any level."""
    text = README.read_text()
    marks = list(_HEADING.finditer(_without_fences(text)))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1] == heading:
            return text[mark.end() : following.start() if following else len(text)]
    raise AssertionError(f"README has no heading {heading!r}")


def _all_blocks() -> list[Block]:
    text = README.read_text()
    headings = [(mark.start(), mark[1]) for mark in _HEADING.finditer(_without_fences(text))]
    found = []
    for match in _BLOCK.finditer(text):
        note, _, about = (match["note"] or "").partition(": ")
        heading = [name for start, name in headings if start < match.start()][-1]
        found.append(Block(heading, match["language"], match["text"], note, about))
    return found


def _without_fences(text: str) -> str:
    """The text with every fenced line blanked, so that offsets stay; # is no heading in there."""
    return _BLOCK.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
