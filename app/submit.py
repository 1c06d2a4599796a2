"""What a request asks for, in chunks: the checks that need the model or the settings, the cutting,
and what the speaker should be warned of. Nothing here touches Redis.
"""

from collections.abc import Sequence
from dataclasses import replace

from app.chapters import cut_chapters, title_of
from app.errors import field_problem
from app.offer import languages_of, voices_of
from app.schemas import LongBody, SpeechBody
from supertonic.chunking import PAUSE_SHARE, Break
from supertonic.errors import EmptyText, UnknownVoice
from supertonic.text import estimate_seconds, split_text, unknown_characters
from supertonic.voices import shares
from tasks.messages import Piece
from tasks.settings import Settings
from tasks.workers import WorkerRecord

# The model is made for at most 1,000 latent frames, 69.7 s; the slowest text takes 0.09 s per
# character, so at speed 1 a chunk may have 700 characters.
CHARS_AT_SPEED_1 = 700
# One request's chunks are queued all at once, so their number is bounded.
MAX_CHUNKS = 2000


def check_text(body: SpeechBody, settings: Settings) -> None:
    """Raises Problem: 422 for a text that no worker could speak."""
    limit = settings.max_text_chars
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


def split(body: SpeechBody, settings: Settings) -> list[Piece]:
    """The text in chunks, each with the silence that follows it.

    Raises Problem: 422 for a text with nothing to speak.
    """
    if isinstance(body, LongBody) and body.chapters:
        return _split_chapters(body, settings)
    longest = int(CHARS_AT_SPEED_1 * body.speed)
    try:
        if isinstance(body, LongBody):
            target = min(body.target_chunk_chars, longest)
            chunks = split_text(
                body.text,
                body.language,
                first_chars=target,
                target_chars=target,
                max_chars=min(max(body.max_chunk_chars, target), longest),
            )
        else:
            first = settings.first_chunk_chars
            if body.language == "ko":
                first = max(8, first * 2 // 5)
            chunks = split_text(body.text, body.language, first_chars=first)
    except EmptyText as error:
        raise field_problem("text", body.text, str(error)) from None
    pauses = {ends_at: round(share * body.pause_s, 4) for ends_at, share in PAUSE_SHARE.items()}
    if body.paragraph_pause_s is not None:
        pauses[Break.PARAGRAPH] = body.paragraph_pause_s
    pieces = [Piece(chunk.text, pauses[chunk.ends_at]) for chunk in chunks]
    pieces[-1] = replace(pieces[-1], pause_s=body.end_pause_s)
    return pieces


def _split_chapters(body: LongBody, settings: Settings) -> list[Piece]:
    """Each chapter by itself, so none shares a chunk with the one before it."""
    pieces: list[Piece] = []
    for chapter in cut_chapters(body.text, body.title):
        alone = {"text": chapter.text, "chapters": False, "end_pause_s": body.chapter_pause_s}
        first, *others = split(body.model_copy(update=alone), settings)
        pieces += [replace(first, chapter=chapter.title), *others]
    if not pieces:
        raise field_problem("text", body.text, "holds nothing that can be spoken")
    pieces[-1] = replace(pieces[-1], pause_s=body.end_pause_s)
    return pieces


def check_length(body: SpeechBody, pieces: Sequence[Piece], settings: Settings) -> None:
    """Raises Problem: 422 for more chunks or more sound than one request may ask for."""
    if len(pieces) > MAX_CHUNKS:
        detail = f"makes {len(pieces)} chunks; at most {MAX_CHUNKS} are allowed, so join lines"
        raise field_problem("text", body.text, detail)
    seconds = sum(
        estimate_seconds(piece.text, body.language, body.speed) + piece.pause_s for piece in pieces
    )
    limit = settings.max_audio_s
    if seconds > limit:
        detail = f"would take about {seconds:.0f} s to hear; at most {limit} s are allowed"
        raise field_problem("text", body.text, detail)


def chapter_warnings(body: SpeechBody) -> tuple[str, ...]:
    """What the speaker should know about chapters that were asked for."""
    if not isinstance(body, LongBody) or not body.chapters:
        return ()
    if any(title_of(line) for line in body.text.split("\n")):
        return ()
    return ("The text has no chapters: no line begins with # and a title",)


def warnings(text: str, language: str) -> tuple[str, ...]:
    """What the speaker should know about a text that is accepted all the same."""
    found = []
    if language != "ko" and any("가" <= char <= "힣" for char in set(text)):
        found.append(f"The text holds Hangul, but its language is {language}; Korean is ko")
    unknown = unknown_characters(text)
    if not unknown:
        return tuple(found)
    # Invisible ones by their number: nobody could see which is meant, and headers refuse them.
    unknown = [char if char.isprintable() else f"U+{ord(char[0]):04X}" for char in unknown]
    # One letter may bear thousands of accents.
    shown = " ".join(letter[:8] for letter in unknown[:20]) + (" …" if len(unknown) > 20 else "")
    found.append(f"The model does not know these characters and cannot pronounce them: {shown}")
    return tuple(found)
