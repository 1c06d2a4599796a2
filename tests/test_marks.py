"""Marks: a text is cut there, silence follows or another voice, and nobody sees or hears them."""

import json
import random
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import Problem
from app.fragments import Fragments
from app.schemas import BeginBody, LongBody, SpeechBody
from app.submit import cut, read, split, warnings
from app.turns import Turns
from supertonic.lexicon import Entries, Lexicon
from supertonic.marks import without_last
from supertonic.text import read_text, split_text
from tasks.jobsound import read_index
from tasks.messages import Piece
from tasks.settings import Settings
from tests.sse import SAMPLE_RATE, joined, samples_of
from tests.stack import Stack
from tests.test_chunking import prose, relaxed, squeeze
from tests.test_fragments import heard, send, spoken, texts_in
from tests.test_jobs import done
from tests.test_service import stream
from tests.test_websocket import connect

SETTINGS = Settings()


def pieces(text: str, **fields: Any) -> list[tuple[str, float]]:
    body = SpeechBody(text=text, language="en", **fields)
    return [(piece.text, piece.pause_s) for piece in split(body, read_text(text), SETTINGS)]


def told(text: str, lexicon: Lexicon | None = None) -> tuple[str, ...]:
    body = SpeechBody(text=text, language="en")
    return warnings(body, read(body, lexicon, SETTINGS))


@pytest.mark.parametrize(
    ("mark", "pause_s"),
    [
        ("[pause 1.5s]", 1.5),
        ("[pause:1.5s]", 1.5),
        ("[pause 500ms]", 0.5),
        ("[pause: 2 s]", 2.0),
        ("[PAUSE 1,5S]", 1.5),
        ("[pause .5s]", 0.5),
        ("[pause\n1s]", 1.0),
        ("[pause 0s]", 0.0),
        ("[pause 1s][pause:250ms]", 1.25),
        ("[pause 1s]\n\n[pause 2s]", 3.0),
        ("\n\n[pause 1s]", 1.0),
        ("[pause 1s] *** [pause 2s]", 3.0),
        ("[pause 10s]", 10.0),
        ("[pause 11s]", 10.0),
        ("[pause 9s] [pause 9s]", 10.0),
        ("[pause 999999s]", 10.0),
    ],
)
def test_a_mark_cuts_a_text_and_sets_the_silence_there(mark: str, pause_s: float) -> None:
    found = pieces(f"One and{mark}two. Three.", pause_s=0.7, paragraph_pause_s=2.9)
    shown = "One and ***" if "***" in mark else "One and"
    assert found == [(shown, pause_s), ("two. Three.", 0.0)]
    assert pieces(f"One. {mark} ", end_pause_s=0.2) == [(shown.replace(" and", "."), pause_s)]
    assert bool(told(f"One.{mark}Two.")) == (mark in OVERLONG)


OVERLONG = ("[pause 11s]", "[pause 9s] [pause 9s]", "[pause 999999s]")


def test_signs_that_fit_nowhere_leave_their_pauses() -> None:
    text = f"{'A' * 40}. [pause 1s] {'*' * 40} [pause 2s] {'B' * 40}."
    body = LongBody(text=text, language="en", target_chunk_chars=50, max_chunk_chars=50)
    found = [(piece.text, piece.pause_s) for piece in split(body, read_text(text), SETTINGS)]
    assert found == [(f"{'A' * 40}.", 3.0), (f"{'B' * 40}.", 0.0)]


def test_a_pause_before_the_first_word_is_left_out_and_told() -> None:
    for text in ("[pause 1s] One. Two.", "*** [pause 1s]\n\n[pause 1s] One. Two."):
        assert [pause_s for _, pause_s in pieces(text)] == [0.0]
        assert told(text) == ("A pause before the first word is left out",)
    assert told("★ [pause 1s] One.", Lexicon(Entries({"★": "star"}))) == ()


def test_a_text_of_marks_alone_has_nothing_to_say() -> None:
    for text in ("[pause 1s]", " [pause 1s]\n\n[pause:2s] ", "*** [pause 1s] 🙂"):
        with pytest.raises(Problem, match="holds only pauses, emoji"):
            pieces(text)


@pytest.mark.parametrize(
    "text", ["[pause abc]", "[pause]", "[pause 5]", "[pause -1s]", "[pause 1.s]", "[pause:1 min]"]
)
def test_what_is_no_mark_is_text_as_ever_and_told(text: str) -> None:
    assert pieces(f"One {text} two.") == [(f"One {text} two.", 0.0)]
    assert told(f"One {text} two.") == (
        f"{text} is no mark but text; a pause is [pause 1.5s] or [pause 500ms]",
    )


def test_a_word_in_brackets_is_no_reason_to_warn() -> None:
    for text in ("[paused 1s]", "[a pause 1s]", "pause 1s", "[pause", "[pause 1\r\n2]"):
        assert told(f"One {text} two.") == ()


def test_a_lexicon_neither_breaks_marks_nor_reads_across_them() -> None:
    lexicon = Lexicon(Entries({"pause": "paws", "1s": "one", "New York": "NY", "a": "b"}))
    text = read_text("A pause. [pause 1s] New [pause 2s] York", lexicon)
    found = [(chunk.spoken, chunk.pause_s) for chunk in split_text(text, "en")]
    assert found == [("b paws.", 1.0), ("New", 2.0), ("York", None)]


marked = st.lists(st.tuples(prose, st.integers(0, 900)), min_size=1, max_size=6)


@relaxed
@given(marked, st.integers(50, 900))
def test_marks_take_no_word_and_all_silences_are_there(
    parts: list[tuple[str, int]], longest: int
) -> None:
    text = "".join(f"{part}a[pause {ms}ms]" for part, ms in parts)
    body = LongBody(text=text, language="en", pause_s=0, max_chunk_chars=longest)
    found = split(body, read_text(text), SETTINGS)
    assert squeeze("".join(piece.text for piece in found)) == (
        squeeze("".join(f"{part}a" for part, _ in parts))
    )
    silence = sum(piece.pause_s for piece in found)
    assert silence == pytest.approx(sum(ms for _, ms in parts) / 1000)


# -- in fragments ----------------------------------------------------------------------------

TEXT = (
    "Good evening. [pause 1s] It begins\n\n[pause:500ms]  [pause 2s]\n\nhere [pau] and [pause abc]"
    " there. Wait [pause 1,5s] for it.\n\n[Next.] The end. [pause 3s]"
)
WHOLE = [
    ("Good evening.", 1.0),
    ("It begins", 2.5),
    ("here [pau] and [pause abc] there.", 0.0),
    ("Wait", 1.5),
    ("for it.", 0.0),
    ("[Next.]", 0.0),
    ("The end.", 3.0),
]


def begun(**fields: Any) -> Fragments:
    return Fragments(BeginBody(language="en", pause_s=0, **fields), SETTINGS)


def said(parts: list[str]) -> list[tuple[str, float]]:
    return [found for text in spoken(begun(), parts) for found in pieces(text, pause_s=0)]


def test_however_a_text_is_cut_its_pauses_are_where_they_were() -> None:
    assert said(list(TEXT)) == WHOLE
    dice = random.Random(2)
    for _ in range(100):
        cuts = sorted(dice.sample(range(len(TEXT)), 12))
        found = said([TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)])
        words = " ".join(text for text, _ in found)
        assert words == " ".join(text for text, _ in WHOLE)
        silence = [pause_s for _, pause_s in found if pause_s]
        assert silence == [1.0, 2.5, 1.5, 3.0]


def test_what_may_become_a_mark_is_waited_for_and_nothing_else() -> None:
    fragments = begun()
    for part in ("Hello.", " [", "pau", "se ", "1s"):
        assert fragments.add(part) is None
    wish = fragments.add("] W")
    assert wish is not None and wish.text == "Hello. [pause 1s]"
    for part in ("[l", "[pausa", "[pause is what he said here]", "[pause 1s2"):
        wish = begun().add(f"Hello. {part}" + " " * 20)
        assert wish is not None and wish.text == "Hello.", part


@given(st.lists(st.sampled_from(["[pause 1s]", "[pau", "se 2s]", "a", "B. ", "\n", "[", "]", " "])))
@example(["a", "[pau", "se 2s]", "a"])
def test_no_word_is_lost_or_said_twice(parts: list[str]) -> None:
    def letters(texts: list[str]) -> str:
        found = "".join(squeeze(p.reading.spoken) for text in texts for p in read_text(text))
        return "".join(character for character in found if character.isalnum())

    texts = spoken(begun(), parts)
    expected = letters(["".join(parts)])
    assert letters(texts) == expected


def test_a_row_of_brackets_or_blanks_takes_no_time() -> None:
    """Not a second for what a body of a megabyte may hold."""
    blocks = ("[", " ", "[pause 1s] ", "]", "\n", "[pause ", "[pause 1", "[pause:1[")
    for text in (*(block * 5_000 for block in blocks), "[pause " + "9" * 50_000, " " * 50_000):
        began = time.thread_time()
        begun().add(f"a {text[:49_000]}")
        told(f"a {text[:49_000]}")
        assert time.thread_time() - began < 1, text[:20]


# -- heard -----------------------------------------------------------------------------------


def test_a_pause_has_exactly_its_samples(server: Stack) -> None:
    body = {"text": "One sentence. [pause 1234ms] Another one.", "seed": 81}
    events = stream(server, body)
    first, second = [event.data for event in events if event.event == "chunk"]
    assert (first["text"], second["text"]) == ("One sentence.", "Another one.")
    alone = stream(server, {"text": "One sentence.", "seed": 81})
    sound, plain = joined(events), joined(alone)
    pause = round(1.234 * SAMPLE_RATE)
    assert first["n_samples"] == len(plain) + pause
    assert (sound[: len(plain)] == plain).all()
    assert not sound[len(plain) : len(plain) + pause].any()
    whole = server.post("/synthesize", body | {"output_format": "wav", "end_pause_s": 1})
    assert len(samples_of(whole.content)) == len(sound) + SAMPLE_RATE


def test_a_long_job_and_its_captions_have_pauses(server: Stack) -> None:
    text = "One sentence. [pause 2s]\n\nAnother one. [pause:500ms]"
    job_id = server.post("/synthesize/long", {"text": text, "seed": 82}).json()["job_id"]
    job = done(server, job_id)
    first, second = read_index(server.data_dir / "jobs" / job_id)
    sound = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    silence = slice(first.n_samples, first.n_samples + 2 * SAMPLE_RATE)
    assert second.start == silence.stop and not sound[silence].any()
    assert len(sound) == second.start + second.n_samples + round(0.5 * SAMPLE_RATE)
    assert job["duration_seconds"] == pytest.approx(len(sound) / SAMPLE_RATE, abs=1e-3)
    captions = server.get(f"/jobs/{job_id}/captions").text
    assert "pause" not in captions and "One sentence." in captions


def test_v1_has_pauses(server: Stack) -> None:
    body = {"voice": "M1", "seed": 83, "response_format": "wav", "pause_s": 0.0}
    usual, longer = (
        samples_of(server.post("/v1/audio/speech", body | {"input": text}).content)
        for text in ("One.\n\nTwo.", "One.[pause:1s]Two.")
    )
    assert len(longer) == len(usual) + SAMPLE_RATE
    answer = server.post("/v1/audio/speech", {"input": "[pause 1s]", "voice": "M1"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input"
    odd = "[pause 1s] Hi [pause å]."
    answer = server.post("/v1/audio/speech", {"input": odd, "voice": "M1"})
    assert "before the first word" in answer.headers["X-Warnings"]


def test_fragments_over_a_websocket_have_pauses(server: Stack) -> None:
    with connect(server) as ws:
        send(ws, "begin", seed=84, slices=False)
        for part in ("One sentence. [pau", "se 1s", "] Another", " one."):
            send(ws, "text", text=part)
        send(ws, "end")
        found = heard(ws, "ended")
    assert texts_in(found) == "One sentence. Another one."
    lengths = [message["n_samples"] for message in found if message["type"] == "chunk"]
    alone = joined(stream(server, {"text": "One sentence.", "seed": 84}))
    assert lengths[0] == len(alone) + SAMPLE_RATE
    assert np.abs(alone).max() > 0


@pytest.mark.parametrize("mark", ["[pause 1s] ", "[pause 1s]", " ", "[", "[pause", "]"])
def test_what_is_still_to_come_is_looked_for_in_little_time(mark: str) -> None:
    text = "a" + mark * 50_000
    began = time.process_time()
    known = without_last(text)
    assert time.process_time() - began < 0.5
    is_held_back = mark.strip() in ("", "[pause 1s]")
    assert known == "a" if is_held_back else known.startswith("a" + mark)


def test_marks_alone_belong_to_what_is_before_or_are_warned_of() -> None:
    fragments = Fragments(BeginBody(language="en"), Settings())
    parts = ["Hello there. And", " [pause 3s] ", "[pause 1s] ", "you. So"]
    wishes = [wish for part in parts if (wish := fragments.add(part))]
    assert [wish.text for wish in wishes] == [
        "Hello there.",
        "And [pause 3s] [pause 1s]\n\nyou.",
    ]
    fragments.flush()
    assert fragments.add("[pause 3s] ") is None
    late = fragments.add("Bye. Or")
    assert late is not None and late.text == "[pause 3s]\n\nBye."
    assert warnings(late, read(late, None, Settings())) == (
        "A pause before the first word is left out",
    )


def test_pauses_around_what_is_not_spoken_add_up_and_are_warned_of() -> None:
    body = SpeechBody(text="Hi [pause 6s] ... [pause 6s] you.", language="en")
    text = read(body, None, Settings())
    assert warnings(body, text) == ("A pause of more than 10 s in one place is 10 s",)
    assert [piece.pause_s for piece in split(body, text, Settings())] == [10.0, 0.0]


# -- voices ----------------------------------------------------------------------------------


def voiced(text: str, **fields: Any) -> list[tuple[str, float, str]]:
    body = SpeechBody(text=text, language="en", **fields)
    found = split(body, read_text(text), SETTINGS)
    return [(piece.text, piece.pause_s, piece.voice) for piece in found]


@pytest.mark.parametrize(
    ("mark", "voice"),
    [
        ("[voice F1]", "F1"),
        ("[voice:F1]", "F1"),
        ("[VOICE: f1]", "F1"),
        ("[voice\nM2+F3]", "M2+F3"),
        ("[voice m2(3)+F3(0.5)+M1]", "M2(3)+F3(0.5)+M1"),
        ("[voice F1] [voice M2]", "M2"),
        ("[voice F1] ... [voice M2]", "M2"),
        ("[voice F1][voice default]", ""),
        ("[Voice Default]", ""),
    ],
)
def test_from_a_mark_on_another_voice_speaks(mark: str, voice: str) -> None:
    shown = "He said, ..." if "..." in mark else "He said,"
    assert voiced(f"He said, {mark}hello. You.", pause_s=0.2, paragraph_pause_s=2) == [
        (shown, 0.2, ""),
        ("hello. You.", 0.0, voice),
    ]
    assert voiced(f"{mark} Hello.\n\nYou.", pause_s=0.2, paragraph_pause_s=2) == [
        ("... Hello." if "..." in mark else "Hello.", 2.0, voice),
        ("You.", 0.0, voice),
    ]
    assert told(f"He said, {mark}hello.") == ()


@pytest.mark.parametrize("between", ["[voice F1]\n\n", "\n\n[voice F1]", " \n \n[voice F1]\n\n"])
def test_a_voice_and_a_blank_line_part_paragraphs(between: str) -> None:
    found = voiced(f"One.{between}Two.", paragraph_pause_s=2)
    assert found == [("One.", 2.0, ""), ("Two.", 0.0, "F1")]


@pytest.mark.parametrize("between", ["[voice F1][pause 1s]", "[pause 1s]\n\n[voice F1]"])
def test_a_voice_and_a_pause_are_both_heard(between: str) -> None:
    found = voiced(f"One. {between} Two.", paragraph_pause_s=2)
    assert found == [("One.", 1.0, ""), ("Two.", 0.0, "F1")]


@pytest.mark.parametrize(
    "text",
    ["[voice breaks]", "[voice F6]", "[voice]", "[voice F1 M1]", "[voice M1+]", "[voice M1(x)]"],
)
def test_what_names_no_voice_is_text_and_told(text: str) -> None:
    assert voiced(f"One {text} two.") == [(f"One {text} two.", 0.0, "")]
    assert told(f"One {text} two.") == (
        f"{text} is no mark but text; a voice is [voice F1], [voice M1+F2] or [voice default]",
    )


def test_several_that_are_no_marks_are_told() -> None:
    assert len(told("A [pause 1], [voice], [voice], [pause] b.")) == 3
    assert len(told(" ".join(f"[voice a{n}]" for n in range(99)) + " b.")) == 5


def test_signs_before_the_first_word_take_nobodys_voice() -> None:
    assert voiced("*** [voice F1] Hello.") == [("*** Hello.", 0.0, "F1")]


def test_each_chapter_begins_in_the_voice_of_the_request() -> None:
    text = "# One\nHello. [voice F1] Hi.\n# Two\nBye."
    body = LongBody(text=text, language="en", chapters=True)
    found = [(piece.text, piece.voice) for piece in cut(body, None, SETTINGS)[1]]
    assert found == [("One", ""), ("Hello.", ""), ("Hi.", "F1"), ("Two", ""), ("Bye.", "")]


PLAY = (
    "Good evening. He said, [voice F1] Come in. And sit. [voice M2] 1. No.\n\n[voice M2]Or yes,"
    " [voi] and [voice default] [pause 1s] off he went. [voice M1(2)+F2] Ah."
)
SPEAKERS = [
    ("Good evening.", ""),
    ("He said,", ""),
    ("Come in. And sit.", "F1"),
    ("1. No.", "M2"),
    ("Or yes, [voi] and", "M2"),
    ("off he went.", ""),
    ("Ah.", "M1(2)+F2"),
]


def who_says_what(texts: list[str]) -> list[tuple[str, str]]:
    return [
        (word, piece.voice)
        for text in texts
        for piece in split(SpeechBody(text=text, language="en"), read_text(text), SETTINGS)
        for word in piece.text.split()
    ]


def test_however_a_text_is_cut_the_same_voices_say_the_same_words() -> None:
    words = [(word, voice) for text, voice in SPEAKERS for word in text.split()]
    assert who_says_what([PLAY]) == words
    assert who_says_what(spoken(begun(), list(PLAY))) == words
    dice = random.Random(3)
    for _ in range(200):
        cuts = sorted(dice.sample(range(len(PLAY)), dice.randrange(1, 20)))
        parts = [PLAY[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        assert who_says_what(spoken(begun(), parts)) == words
        assert who_says_what([told_together(parts)]) == words


def told_together(parts: list[str]) -> str:
    """What a connection speaks of a text all of which waits."""
    fragments, changed = begun(), threading.Condition()
    turns = Turns[None](changed)
    wishes = [fragments.add(part) for part in parts] + [fragments.flush(is_end=True)]
    for wish in filter(None, wishes):
        turns.add_sentences(fragments, wish)
    assert len(turns) == 1
    text: Any = turns.take()
    return text.text


def test_a_voice_outlasts_a_flush_and_what_was_refused_leaves_none() -> None:
    fragments = begun()
    fragments.add("[voice F1] Hello")
    assert who_says_what([fragments.flush().text]) == [("Hello", "F1")]
    wish = fragments.add("you. And")
    assert who_says_what([wish.text]) == [("you.", "F1")]
    refused = fragments.add(" me. [voice M2] No. So")
    assert who_says_what([refused.text])[-1] == ("No.", "M2")
    fragments.take_back()
    assert who_says_what([fragments.flush().text]) == [("And", "F1")]


def test_who_speaks_is_kept_with_a_job() -> None:
    pieces = [
        Piece("Hi.", 0.3, voice="F1"),
        Piece("Hi.", 0.0),
        Piece("SQL", 0.0, "sequel", "A", "M1"),
    ]
    assert [Piece.of_row(json.loads(json.dumps(piece.to_row()))) for piece in pieces] == pieces
    assert pieces[1].to_row() == ["Hi.", 0.0]


def test_each_voice_is_heard_as_if_it_spoke_alone(server: Stack) -> None:
    plain = {"text": "One sentence.\n\nAnother one.\n\nThe third.", "seed": 85}
    by_one, by_two = (chunks_of(server, plain | {"voice": voice}) for voice in ("M1", "M2+F3"))
    text = "One sentence. [voice M2+F3] Another one. [voice default] The third."
    mixed = chunks_of(server, {"text": text, "seed": 85, "voice": "M1"})
    assert [len(samples) for samples in by_one] != [len(samples) for samples in by_two]
    for found, expected in zip(mixed, (by_one[0], by_two[1], by_one[2]), strict=True):
        assert is_same(found, expected)


def is_same(samples: np.ndarray, expected: np.ndarray) -> bool:
    """But for the last bit, which may depend on the batch."""
    is_as_long = len(samples) == len(expected)
    return is_as_long and np.abs(samples.astype(int) - expected).max() <= 1


def chunks_of(server: Stack, body: dict[str, Any]) -> list[np.ndarray]:
    events = stream(server, body | {"pause_s": 0.0})
    return [joined([event]) for event in events if event.event == "chunk"]


def test_a_long_job_is_spoken_by_its_voices(server: Stack) -> None:
    body = {"text": "One sentence. [voice F1] Another one.", "seed": 86, "voice": "M1"}
    job_id = server.post("/synthesize/long", body).json()["job_id"]
    done(server, job_id)
    sound = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    assert is_same(sound, joined(stream(server, body)))
    assert "voice" not in server.get(f"/jobs/{job_id}/captions").text


def test_a_voice_that_cannot_speak_is_refused(server: Stack) -> None:
    answer = server.post("/synthesize", {"text": "Hi. [voice M1(0)+F1(0)] You."})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "text" and "[voice M1(0)+F1(0)]: a mixture needs" in error["detail"]


def test_fragments_over_a_websocket_have_voices(server: Stack) -> None:
    with connect(server) as ws:
        send(ws, "begin", seed=87, voice="M1", slices=False)
        for part in ("[voi", "ce F1] One sentence", ". And"):
            send(ws, "text", text=part)
        send(ws, "end")
        found = heard(ws, "ended")
    assert texts_in(found) == "One sentence. And"
    first = next(message for message in found if message["type"] == "chunk")
    alone = joined(stream(server, {"text": "One sentence.", "seed": 87, "voice": "F1"}))
    assert first["n_samples"] >= len(alone)
