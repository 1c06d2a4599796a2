"""Text in fragments is spoken sentence by sentence, all of it once."""

import json
import random
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Problem
from app.fragments import JOINED_CHARS, Fragments
from app.schemas import BeginBody, WishBody
from app.turns import MAX_WISHES, Turns
from supertonic.chunking import sentences_end
from tasks.settings import Settings
from tests.stack import Stack
from tests.test_websocket import connect, until_ending

TEXT = (
    'Dr. Smith paid 3.5 euros for No. 7. Then he left! Did he? "Yes!" she said, and that was '
    "that...  and so on.\n\nA new paragraph begins\nhere. It ends without a mark"
)


def begun(**fields: object) -> Fragments:
    return Fragments(BeginBody(language="en", **fields), Settings())


def spoken(fragments: Fragments, parts: list[str]) -> list[str]:
    found = [fragments.add(part) for part in parts] + [fragments.flush(is_end=True)]
    return [wish.text for wish in found if wish is not None]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("Hello", ""),
        ("Hello.", ""),
        ("Hello. ", ""),
        ("Hello. W", "Hello."),
        ("It costs 3.", ""),
        ("It costs 3.5 euros", ""),
        ("Ask Dr. Smith", ""),
        ("One. Two! Three? Fo", "One. Two! Three?"),
    ],
)
def test_a_sentence_is_whole_when_the_next_has_begun(text: str, whole: str) -> None:
    plain = " ".join(text.split())
    assert plain[: sentences_end(plain)] == whole


def test_however_a_text_is_cut_its_sentences_are_the_same() -> None:
    whole = [" ".join(text.split()) for text in spoken(begun(), list(TEXT))]
    assert whole == [
        "Dr. Smith paid 3.5 euros for No. 7.",
        "Then he left!",
        "Did he?",
        '"Yes!" she said, and that was that... and so on.',
        "A new paragraph begins here.",
        "It ends without a mark",
    ]
    dice = random.Random(1)
    for _ in range(50):
        cuts = sorted(dice.sample(range(len(TEXT)), 20))
        parts = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        assert " ".join(spoken(begun(), parts)).split() == " ".join(whole).split()


@given(st.lists(st.text(st.sampled_from('ab .!?\n3"')), max_size=30))
def test_no_word_is_lost_or_said_twice(parts: list[str]) -> None:
    words = "".join("".join(spoken(begun(), parts)).split())
    everything = "".join("".join(parts).split())
    # What holds no letter and no digit cannot be spoken by itself.
    assert [c for c in words if c in "ab3"] == [c for c in everything if c in "ab3"]


def test_a_pause_stands_between_sentences_and_what_was_asked_for_behind_all() -> None:
    fragments = begun(pause_s=0.7, end_pause_s=0.1)
    first = fragments.add("One. Two")
    last = fragments.flush(is_end=True)
    assert first is not None and last is not None
    assert (first.end_pause_s, last.end_pause_s) == (0.7, 0.1)


def test_what_cannot_be_spoken_is_left_out() -> None:
    assert spoken(begun(), ["😀 ", "\n\n", "Hi! ", "😀", "\n\n", "..."]) == ["Hi!"]


def test_a_sentence_without_an_end_is_refused_and_what_was_there_is_kept() -> None:
    fragments = Fragments(BeginBody(language="en"), Settings(max_text_chars=100))
    fragments.add("a" * 60)
    for _ in range(3):
        with pytest.raises(Problem, match="without the end of a sentence"):
            fragments.add("b" * 60)
    assert spoken(fragments, ["c"]) == ["a" * 60 + "c"]


def test_a_text_that_finds_no_room_can_be_sent_again() -> None:
    turns = Turns[None](threading.Condition())
    for _ in range(MAX_WISHES):
        turns.add(WishBody(text="Before it.", language="en"))
    fragments = begun()
    fragments.add("One. ")
    for _ in range(3):
        wish = fragments.add("Two. Three")
        assert wish is not None
        with pytest.raises(Problem, match="send more when some are done"):
            turns.add_sentences(fragments, wish)
    turns.drop()
    assert spoken(fragments, ["Two. Three"]) == ["One. Two.", "Three"]


# -- over a WebSocket ------------------------------------------------------------------------


def send(ws, kind: str, **fields: object) -> None:
    ws.send(json.dumps({"type": kind} | fields))


def heard(ws, until: str) -> list[dict]:
    """Messages up to one of this type; sound is skipped."""
    found: list[dict] = []
    while not found or found[-1]["type"] != until:
        message = ws.recv()
        if isinstance(message, str):
            found.append(json.loads(message))
    return found


def texts_in(told: list[dict]) -> str:
    """Of all chunks, each once."""
    chunks = [message for message in told if message["type"] == "chunk"]
    return " ".join(chunk["text"] for chunk in chunks if chunk.get("is_last_slice", True))


def test_sentences_are_heard_while_the_rest_is_being_written(server: Stack) -> None:
    with connect(server) as ws:
        send(ws, "begin", id="answer", voice="F1", seed=4, end_pause_s=0.2)
        send(ws, "text", text="The first sentence is here. The sec")
        early = heard(ws, "done")
        assert texts_in(early) == "The first sentence is here."
        for token in ("ond", " follows", ". And", " a third", " one"):
            send(ws, "text", text=token)
        send(ws, "flush")
        send(ws, "text", text=" Bye")
        send(ws, "end")
        told = early + heard(ws, "ended")
        assert {message["id"] for message in told} == {"answer"}
        assert texts_in(told) == (
            "The first sentence is here. The second follows. And a third one Bye"
        )
        texts = sum(message["type"] == "done" for message in told)
        assert told[-1] == {"type": "ended", "texts": texts, "id": "answer"}
        # The next one starts anew.
        send(ws, "begin")
        send(ws, "end")
        assert heard(ws, "ended") == [{"type": "ended", "texts": 0}]


def test_sentences_that_wait_are_spoken_together(server: Stack) -> None:
    with connect(server) as ws, server.held():
        send(ws, "begin")
        for number in range(120):
            send(ws, "text", text=f"This is sentence number {number}, no more. ")
        send(ws, "end")
        send(ws, "speak", text="Behind it.")
        # When this is answered, all that was sent before it has been read.
        send(ws, "flush")
        told = heard(ws, "error")
        server.processes["worker"].send_signal(signal.SIGCONT)
        told += heard(ws, "ended")
        texts = told[-1]["texts"]
        assert texts < 120 * 45 / JOINED_CHARS + 3
        said = texts_in(told)
        assert (
            said.split()
            == " ".join(f"This is sentence number {n}, no more." for n in range(120)).split()
        )
        assert until_ending(ws)[-1]["type"] == "done"


def test_a_cancel_ends_it(server: Stack) -> None:
    with connect(server) as ws:
        send(ws, "begin", id="a")
        send(ws, "text", text="One sentence of some length is here. Another one follows it. And")
        ws.recv()
        send(ws, "cancel")
        assert heard(ws, "cancelled")[-1]["id"] == "a"
        send(ws, "text", text=" more")
        assert heard(ws, "error")[-1]["status"] == 409
        send(ws, "speak", text="Now this.")
        assert until_ending(ws)[-1]["type"] == "done"


def test_mistakes_are_told_and_disturb_nothing(server: Stack) -> None:
    with connect(server) as ws:
        for kind in ("text", "flush", "end"):
            send(ws, kind, text="Hi.")
            assert "send a begin first" in heard(ws, "error")[-1]["detail"]
        for wrong in ({"speed": 9}, {"language": "de"}):
            send(ws, "begin", id="wrong", **wrong)
            told = heard(ws, "error")[-1]
            assert (told["status"], told["id"]) == (422, "wrong")
        send(ws, "begin", id="right")
        for kind, fields, status in (
            ("begin", {}, 409),
            ("speak", {"text": "Hi."}, 409),
            ("text", {}, 422),
            ("text", {"text": 5}, 422),
            ("text", {"text": "a", "voice": "F1"}, 422),
        ):
            send(ws, kind, **fields)
            told = heard(ws, "error")[-1]
            assert (told["status"], told["id"]) == (status, "right")
        send(ws, "text", text="Still here")
        send(ws, "end")
        assert heard(ws, "ended")[-1]["texts"] == 1
