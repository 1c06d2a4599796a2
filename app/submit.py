"""What a request asks for, in chunks: the checks that need the model or the settings, the cutting,
and what the speaker should be warned of. Nothing here touches Redis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

from app.chapters import cut_chapters, has_titles
from app.errors import field_problem
from app.offer import languages_of, voices_of
from app.schemas import LongBody, SpeechBody
from supertonic.characters import is_speakable, unknown_characters
from supertonic.chunking import PAUSE_SHARE, Break
from supertonic.errors import EmptyText, SsmlError, TextTooLong, UnknownVoice
from supertonic.lexicon import Lexicon
from supertonic.marks import MOST_S, USUAL_VOICE, malformed
from supertonic.ssml import is_ssml, read_ssml
from supertonic.text import Paragraph, estimate_seconds, read_text, split_text
from supertonic.voices import shares
from tasks.messages import Piece
from tasks.settings import Settings
from tasks.workers import WorkerRecord

Body = TypeVar("Body", bound=SpeechBody)

# The model is made for at most 1,000 latent frames, 69.7 s; the slowest text takes 0.09 s per
# character, so at speed 1 a chunk may have 700 characters.
CHARS_AT_SPEED_1 = 700
# One request's chunks are queued all at once, so their number is bounded; those of a long job are
# queued a few at a time, but each is looked at with every step (tasks/advancing.py).
MAX_CHUNKS, MAX_LONG_CHUNKS = 2000, 20_000
MAX_CHAPTERS = 2000
# Of what only looks like a mark.
MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Most:
    """What one request may ask for."""

    chars: int
    chunks: int
    audio_s: int

    @classmethod
    def of(cls, body: SpeechBody, settings: Settings) -> "Most":
        if isinstance(body, LongBody):
            chars, audio_s = settings.max_long_text_chars, settings.max_long_audio_s
            return cls(chars, MAX_LONG_CHUNKS, audio_s)
        return cls(settings.max_text_chars, MAX_CHUNKS, settings.max_audio_s)


def check_text(body: SpeechBody, settings: Settings) -> None:
    """Raises Problem: 422 for a text that no worker could speak."""
    limit = Most.of(body, settings).chars
    if len(body.text) > limit:
        detail = f"has {len(body.text)} characters; at most {limit} are allowed"
        raise field_problem("text", body.text, detail)
    if not body.text.isascii() and any("\ud800" <= char <= "\udfff" for char in body.text):
        raise field_problem("text", body.text, "holds half of a surrogate pair; send UTF-8")


def check(body: SpeechBody, workers: Sequence[WorkerRecord], settings: Settings) -> None:
    """Raises Problem: 422 for a text, voice or language that these workers cannot speak."""
    check_text(body, settings)
    try:
        shares(body.voice, voices_of(workers))
    except UnknownVoice as error:
        raise field_problem("voice", body.voice, str(error)) from None
    languages = languages_of(workers)
    if body.language not in languages:
        raise field_problem("language", body.language, f"must be one of {', '.join(languages)}")


def cut(
    body: SpeechBody, lexicon: Lexicon | None, settings: Settings
) -> tuple[list[Paragraph], list[Piece]]:
    """The text as it is to be spoken, and its chunks, each with the silence that follows it.

    Raises Problem: 422 for a text that is too long then, or has nothing to speak.
    """
    if not isinstance(body, LongBody) or not body.chapters:
        text = read(body, lexicon, settings)
        return text, split(body, text, settings)
    # Each chapter by itself, so none shares a chunk with the one before it. The lexicon may leave
    # nothing of one.
    text = read(body, lexicon, settings)
    chapters = cut_chapters(body.text, body.title)
    if len(chapters) > MAX_CHAPTERS:
        detail = f"has {len(chapters)} chapters; at most {MAX_CHAPTERS} are allowed"
        raise field_problem("text", body.text, detail)
    readings = [read_text(chapter.text, lexicon) for chapter in chapters]
    spoken = [
        (chapter.title, reading)
        for chapter, reading in zip(chapters, readings, strict=True)
        if any(is_speakable(paragraph.reading.spoken) for paragraph in reading)
    ]
    if not spoken:
        raise field_problem("text", body.text, "holds nothing that can be spoken")
    pieces: list[Piece] = []
    between = body.model_copy(update={"end_pause_s": body.chapter_pause_s})
    for number, (title, reading) in enumerate(spoken, start=1):
        first, *others = split(body if number == len(spoken) else between, reading, settings)
        pieces += [replace(first, chapter=title), *others]
    return text, pieces


def read(body: SpeechBody, lexicon: Lexicon | None, settings: Settings) -> list[Paragraph]:
    """The text as it is to be spoken. Raises Problem: 422 where that is too long."""
    most = Most.of(body, settings).chars
    try:
        # What replaces a word may be many times its length.
        return read_text(body.text, lexicon, most)
    except TextTooLong:
        detail = f"has more than {most} characters as the lexicon has it read"
        raise field_problem("text", body.text, detail) from None


def split(body: SpeechBody, text: Sequence[Paragraph], settings: Settings) -> list[Piece]:
    """The text in chunks, each with the silence that follows it.

    Raises Problem: 422 for a text with nothing to speak.
    """
    longest = int(CHARS_AT_SPEED_1 * body.speed)
    try:
        if isinstance(body, LongBody):
            target = min(body.target_chunk_chars, longest)
            chunks = split_text(
                text,
                body.language,
                first_chars=target,
                target_chars=target,
                max_chars=min(max(body.max_chunk_chars, target), longest),
            )
        else:
            first = settings.first_chunk_chars
            if body.language == "ko":
                first = max(8, first * 2 // 5)
            chunks = split_text(text, body.language, first_chars=first)
    except EmptyText as error:
        raise field_problem("text", body.text, str(error)) from None
    pauses = {ends_at: round(share * body.pause_s, 4) for ends_at, share in PAUSE_SHARE.items()}
    if body.paragraph_pause_s is not None:
        pauses[Break.PARAGRAPH] = body.paragraph_pause_s
    pauses[Break.END] = body.end_pause_s
    return [
        Piece(chunk.text, chunk.silence_s(pauses), chunk.read_as, voice=chunk.voice)
        for chunk in chunks
    ]


def without_ssml(body: Body) -> tuple[Body, tuple[str, ...]]:
    """The request with plain text and marks in place of SSML, and what its speaker is warned of.

    Raises Problem: 422 for SSML that cannot be read.
    """
    if not is_ssml(body.text):
        return body, ()
    try:
        found = read_ssml(body.text)
    except SsmlError as error:
        raise field_problem("text", body.text, f"is SSML, but {error}") from None
    told = f"These change nothing here: {', '.join(found.ignored)}"
    return body.model_copy(update={"text": found.text}), (told,) if found.ignored else ()


def check_voices(
    body: SpeechBody, pieces: Sequence[Piece], workers: Sequence[WorkerRecord]
) -> None:
    """Raises Problem: 422 for a voice in the text that these workers do not have."""
    known = voices_of(workers)
    for voice in {piece.voice for piece in pieces} - {""}:
        try:
            shares(voice, known)
        except UnknownVoice as error:
            raise field_problem("text", body.text, f"holds [voice {voice}]: {error}") from None


def check_length(body: SpeechBody, pieces: Sequence[Piece], settings: Settings) -> None:
    """Raises Problem: 422 for more chunks or more sound than one request may ask for."""
    most = Most.of(body, settings)
    if len(pieces) > most.chunks:
        detail = f"makes {len(pieces)} chunks; at most {most.chunks} are allowed, so join lines"
        raise field_problem("text", body.text, detail)
    seconds = sum(
        estimate_seconds(piece.spoken, body.language, body.speed) + piece.pause_s
        for piece in pieces
    )
    if seconds > most.audio_s:
        detail = f"would take about {seconds:.0f} s to hear; at most {most.audio_s} s are allowed"
        raise field_problem("text", body.text, detail)


def warnings(body: SpeechBody, text: Sequence[Paragraph]) -> tuple[str, ...]:
    """What the speaker should know about a text that is accepted all the same."""
    spoken = "\n".join(paragraph.reading.spoken for paragraph in text)
    found = [*_hangul(spoken, body.language), *_unknown(spoken), *_marks(body.text, text)]
    if isinstance(body, LongBody) and body.chapters and not has_titles(body.text):
        found.append("The text has no chapters: no line begins with # and a title")
    return tuple(found)


def _hangul(spoken: str, language: str) -> Iterator[str]:
    if language != "ko" and any("가" <= char <= "힣" for char in set(spoken)):
        yield f"The text holds Hangul, but its language is {language}; Korean is ko"


def _unknown(spoken: str) -> Iterator[str]:
    unknown = unknown_characters(spoken)
    if not unknown:
        return
    # Invisible ones by their number: nobody could see which is meant, and headers refuse them.
    unknown = [char if char.isprintable() else f"U+{ord(char[0]):04X}" for char in unknown]
    # One letter may bear thousands of accents.
    shown = " ".join(letter[:8] for letter in unknown[:20]) + (" …" if len(unknown) > 20 else "")
    yield f"The model does not know these characters and cannot pronounce them: {shown}"


def _silences(text: Sequence[Paragraph]) -> Iterator[float]:
    """What marks ask for between what is spoken."""
    pause_s = 0.0
    for paragraph in text:
        if is_speakable(paragraph.reading.spoken):
            yield pause_s
            pause_s = 0.0
        pause_s += paragraph.pause_s or 0.0
    yield pause_s


def _marks(written: str, text: Sequence[Paragraph]) -> Iterator[str]:
    """Of marks that do something else than they say."""
    silent = takewhile(lambda paragraph: not is_speakable(paragraph.reading.spoken), text)
    if any(paragraph.pause_s for paragraph in silent):
        yield "A pause before the first word is left out"
    if any(pause_s > MOST_S for pause_s in _silences(text)):
        yield f"A pause of more than {MOST_S:g} s in one place is {MOST_S:g} s"
    for wrong in malformed(written)[:MOST_TOLD]:
        if wrong[1:6].lower() == "pause":
            right = "a pause is [pause 1.5s] or [pause 500ms]"
        else:
            right = f"a voice is [voice F1], [voice M1+F2] or [voice {USUAL_VOICE}]"
        yield f"{wrong} is no mark but text; {right}"
