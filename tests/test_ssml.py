"""SSML: what of it can be spoken is, and what cannot is told."""

import random
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import Problem
from app.schemas import SpeechBody
from app.submit import cut, without_ssml
from supertonic.errors import SsmlError
from supertonic.ssml import is_ssml, read_ssml
from tasks.settings import Settings
from tests.sse import joined
from tests.stack import Stack
from tests.test_marks import is_same
from tests.test_service import stream


def said(inside: str, **fields: Any) -> list[tuple[str, float, str]]:
    """What is spoken of SSML with this in its root: the text, the silence behind it, the voice."""
    text = f"<speak>{inside}</speak>"
    body, told = without_ssml(SpeechBody(text=text, language="en", **fields))
    assert told == ()
    return [(p.text, p.pause_s, p.voice) for p in cut(body, None, Settings())[1]]


@pytest.mark.parametrize(
    ("inside", "spoken"),
    [
        ("Hi &amp; bye.", [("Hi & bye.", 0.0, "")]),
        ("<![CDATA[1 < 2.]]>", [("1 < 2.", 0.0, "")]),
        ("\n  Hello\n\n  there. <!-- Nobody. -->\n", [("Hello there.", 0.0, "")]),
        ("<p>One.</p><p>Two.</p>", [("One.", 2.0, ""), ("Two.", 0.0, "")]),
        ("<p><s>One</s><s>Two?</s> <s>“Three.”</s></p>", [("One. Two? “Three.”", 0.0, "")]),
        ("One.<break time='1.5s'/>Two.", [("One.", 1.5, ""), ("Two.", 0.0, "")]),
        ("One.<break time='+250ms'/>Two.", [("One.", 0.25, ""), ("Two.", 0.0, "")]),
        ("One.<break/>Two.", [("One.", 0.5, ""), ("Two.", 0.0, "")]),
        ("One.<break strength='x-strong'/>Two.", [("One.", 1.5, ""), ("Two.", 0.0, "")]),
        ("One.<break strength='none'/> Two.", [("One. Two.", 0.0, "")]),
        ("One.<break/><break time='1s'/>Two.", [("One.", 1.5, ""), ("Two.", 0.0, "")]),
        ("<sub alias='Doctor  Who'>Dr.<break/></sub> is in.", [("Doctor Who is in.", 0.0, "")]),
        ("<say-as interpret-as='characters'>AB<s>C</s></say-as>", [("A B C .", 0.0, "")]),
        ("<say-as interpret-as='digits'>1 23</say-as> no.", [("1 2 3 no.", 0.0, "")]),
        (
            "<say-as interpret-as='spell-out'>A<break time='1s'/>BC</say-as>",
            [("A", 1.0, ""), ("B C", 0.0, "")],
        ),
        (
            "One. <voice name='f1'>Two. <voice name='M1(2)+F5'>Three.</voice> Four.</voice> Five.",
            [
                ("One.", 0.3, ""),
                ("Two.", 0.3, "F1"),
                ("Three.", 0.3, "M1(2)+F5"),
                ("Four.", 0.3, "F1"),
                ("Five.", 0.0, ""),
            ],
        ),
        ("<metadata>No.</metadata>Yes.<desc>No.</desc>", [("Yes.", 0.0, "")]),
        ("Marks [pause 1s] are marks.", [("Marks", 1.0, ""), ("are marks.", 0.0, "")]),
    ],
)  # fmt: skip
def test_what_can_be_spoken_is(inside: str, spoken: list[tuple[str, float, str]]) -> None:
    assert said(inside, paragraph_pause_s=2) == spoken


@pytest.mark.parametrize(
    "text",
    ["<speak>Hi.</speak>", "\n<speak version='1.1' xmlns='x'>Hi.</speak>", "<speak/>",
     "<?xml version='1.0' encoding='UTF-16'?>\n<speak>Hi.</speak>"],
)  # fmt: skip
def test_a_text_that_begins_with_speak_is_ssml(text: str) -> None:
    assert is_ssml(text)
    assert read_ssml(text).text in ("Hi.", "")


@pytest.mark.parametrize("text", ["They <speak> softly.", "<speaker>Hi.</speaker>", "<p>Hi.</p>"])
def test_any_other_text_is_plain(text: str) -> None:
    assert not is_ssml(text)
    body = SpeechBody(text=text, language="en")
    assert without_ssml(body) == (body, ())


def test_what_changes_nothing_is_told_once() -> None:
    inside = (
        "<prosody rate='slow'>One</prosody> <emphasis>two</emphasis> <emphasis>three</emphasis>"
        " <amazon:effect name='whispered'>four</amazon:effect> <voice gender='female'>five</voice>"
        " <say-as interpret-as='date'>six</say-as> <mark name='here'/>seven."
    )
    body, told = without_ssml(SpeechBody(text=f"<speak>{inside}</speak>", language="en"))
    assert " ".join(piece.text for piece in cut(body, None, Settings())[1]) == (
        "One two three four five six seven."
    )
    assert told == (
        "These change nothing here: <prosody>, <emphasis>, <amazon:effect>,"
        ' <voice> without a name, <say-as interpret-as="date">',
    )


def test_what_is_told_fits_a_header_however_long_it_is() -> None:
    tags = [f"{'x' * 20_000}{number}" for number in range(9)]
    inside = "".join(f"<{'y' * number}{tag}/>" for number, tag in enumerate(tags))
    (warning,) = without_ssml(SpeechBody(text=f"<speak>{inside}</speak>", language="en"))[1]
    assert len(warning) < 250


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<speak>Hi.", "no element found at line 1, column 11"),
        ("<speak>Hi.</speak> there", "at line 1, column 20"),
        ("<speak>\n<p>Hi.</s></speak>", "mismatched tag at line 2, column 9"),
        ("<speak>Fish & chips.</speak>", "well-formed XML"),
        ("<speak>Hi&nbsp;there.</speak>", "undefined entity"),
        ("<speak>Hi\x00.</speak>", "well-formed XML"),
        ("<speak>\n<!DOCTYPE x></speak>", "well-formed XML"),
        ("<speak>Hi.<break time='long'/></speak>", '<break time="long"> should be as 1.5s or'),
        ("<speak>Hi.<break strength='big'/></speak>", "should be one of none, x-weak, weak"),
        ("<speak><sub>Dr.</sub></speak>", "<sub> needs an alias"),
        ("<speak><voice name='Joanna'>Hi.</voice></speak>", 'name="Joanna"> should be one of M1,'),
        ("<speak><voice name='F1] [x'>Hi.</voice></speak>", "should be one of M1,"),
    ],
)
def test_what_is_wrong_is_refused_with_what_would_be_right(text: str, wrong: str) -> None:
    with pytest.raises(SsmlError) as told:
        read_ssml(text)
    assert wrong in str(told.value)
    with pytest.raises(Problem, match="is SSML, but"):
        without_ssml(SpeechBody(text=text, language="en"))


def test_entities_are_not_expanded() -> None:
    bomb = (
        '<?xml version="1.0"?><!DOCTYPE speak [<!ENTITY a "ha "><!ENTITY b "&a;&a;&a;">]>'
        "<speak>&b;</speak>"
    )
    assert not is_ssml(bomb), "it is plain text, and not parsed"
    with pytest.raises(SsmlError, match="document type"):
        read_ssml(bomb)


tags = st.sampled_from(
    ["<speak>", "</speak>", "<p>", "</p>", "<s>", "</s>", "<break/>", "<voice name='F1'>",
     "</voice>", "<sub alias='a'>", "</sub>", "<say-as interpret-as='digits'>", "</say-as>",
     "a", "B. ", "&", "]]>"]
)  # fmt: skip


@given(st.lists(tags, max_size=30))
@example(["<voice name='F1'>", "a", "</voice>"])
def test_any_mixture_of_tags_is_read_or_refused(parts: list[str]) -> None:
    text = f"<speak>{''.join(parts)}</speak>"
    try:
        found = read_ssml(text)
    except SsmlError:
        return
    assert "<" not in found.text
    if not any("alias" in part for part in parts):
        assert found.text.count("B") == parts.count("B. ")


def test_much_of_anything_takes_no_time() -> None:
    dice = random.Random(4)
    nested = "<s>" * 6_000 + "Hi" + "</s>" * 6_000
    spelled = "<say-as interpret-as='digits'>" * 1_000 + "1" * 5_000 + "</say-as>" * 1_000
    flat = "".join(dice.choice(("<break/>", "<p>a</p>", "<s>b</s>")) for _ in range(6_000))
    for inside in (nested, spelled, flat, "<voice name='F1'>" * 1_000 + "</voice>" * 1_000):
        began = time.thread_time()
        read_ssml(f"<speak>{inside}</speak>")
        assert time.thread_time() - began < 1


def test_ssml_sounds_as_the_text_with_marks(server: Stack) -> None:
    marked = "One sentence. [pause 1s] [voice F1] Another one."
    ssml = (
        "<speak>One sentence.<break time='1s'/>"
        "<voice name='F1'><prosody pitch='high'>Another one.</prosody></voice></speak>"
    )
    expected = joined(stream(server, {"text": marked, "seed": 91}))
    events = stream(server, {"text": ssml, "seed": 91})
    assert is_same(joined(events), expected)
    assert [e.data["text"] for e in events if e.event == "chunk"] == [
        "One sentence.",
        "Another one.",
    ]
    answer = server.post("/synthesize", {"text": ssml}).json()
    assert answer["warnings"] == ["These change nothing here: <prosody>"]


def test_broken_ssml_is_refused_everywhere(server: Stack) -> None:
    answer = server.post("/synthesize/long", {"text": "<speak>Hi."})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "text" and "line 1, column 11" in error["detail"]
    answer = server.post("/v1/audio/speech", {"input": "<speak>Hi.", "voice": "M1"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input"
    assert "line 1, column 11" in answer.json()["error"]["message"]
    answer = server.post("/synthesize", {"text": "<speak><p> </p></speak>"})
    assert answer.status_code == 422 and "nothing to say" in answer.text
