"""When each part of a job's text is heard, as captions for players and editors.

Where a chunk begins and ends is known to the sample. Inside a chunk the model does not tell when
which word is spoken, so the lines of a long one share its time by their estimated lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from supertonic.chunking import Size, cut_paragraph
from supertonic.text import estimate_seconds
from tasks.jobsound import Entry
from tasks.messages import Piece, SpeechRequest

# Two lines of what is usual on a screen: 42 characters, or 16 of Hangul.
LINE_CHARS = {"ko": 32}
USUAL_CHARS = 84
CAPTION_TYPES = {"vtt": "text/vtt; charset=utf-8", "srt": "application/x-subrip; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Cue:
    """A line of text and when it is heard, in seconds from the beginning of the sound."""

    start_s: float
    end_s: float
    text: str


def cues(
    pieces: Sequence[Piece], entries: Sequence[Entry], sample_rate: int, request: SpeechRequest
) -> Iterator[Cue]:
    """The lines of all chunks that are in the sound, in order; pauses belong to none."""
    longest = LINE_CHARS.get(request.language, USUAL_CHARS)
    size = Size(target=longest, longest=longest, shortest=longest // 4)
    for piece, entry in zip(pieces, entries, strict=False):
        lines = [line.strip() for line, _ in cut_paragraph(piece.text, size)]
        shares = [estimate_seconds(line, request.language, request.speed) for line in lines]
        start, total = entry.start, sum(shares)
        for number, (line, share) in enumerate(zip(lines, shares, strict=True), start=1):
            is_last = number == len(lines)
            length = round(entry.n_samples * share / total)
            end = entry.start + entry.n_samples if is_last else start + length
            yield Cue(start / sample_rate, end / sample_rate, line)
            start = end


def as_vtt(lines: Iterator[Cue]) -> Iterator[str]:
    """WebVTT, which browsers show beside an ``audio`` or ``video`` element."""
    yield "WEBVTT\n"
    for cue in lines:
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"\n{_clock(cue.start_s)} --> {_clock(cue.end_s)}\n{text}\n"


def as_srt(lines: Iterator[Cue]) -> Iterator[str]:
    """SubRip, which editors and most players read. It has no escapes."""
    for number, cue in enumerate(lines, start=1):
        times = f"{_clock(cue.start_s)} --> {_clock(cue.end_s)}".replace(".", ",")
        yield f"{number}\n{times}\n{cue.text.replace('-->', '→')}\n\n"


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
