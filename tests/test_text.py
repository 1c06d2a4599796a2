import hashlib
import json
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.schemas import SpeechBody
from app.submit import warnings
from supertonic.characters import (
    LANGUAGES,
    UNKNOWN_ID,
    VOCABULARY,
    encode,
    normalize,
    unknown_characters,
)
from supertonic.errors import EmptyText, UnknownLanguage
from supertonic.text import estimate_seconds, read_text

PUBLISHED_INDEXER_SHA256 = "b7662a73a0703f43b97c0f2e089f8e8325e26f5d841aca393b5a54c509c92df1"
relaxed = settings(deadline=None, max_examples=150)
# Characters that some step acts on turn up often, everything else now and then.
messy = st.text(
    st.one_of(
        st.sampled_from("aE1 .,!?;:'\"_[]|/#@→\\♥©“’`´–‑\u2010🙂\ufe0f…½å\t\n안"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


def is_readable(text: str) -> bool:
    return UNKNOWN_ID not in encode(text, "en")


def spoken(text: str) -> str:
    """What normalize makes of a text, composed again to be easy to read and write here."""
    return unicodedata.normalize("NFC", normalize(text))


def test_the_vocabulary_is_the_published_one() -> None:
    """Rebuilt in its published form, a list of 65,536 ids, it has the published file's checksum."""
    indexer = json.dumps([VOCABULARY.find(chr(code)) for code in range(65536)])
    assert hashlib.sha256(indexer.encode()).hexdigest() == PUBLISHED_INDEXER_SHA256
    assert len(VOCABULARY) == UNKNOWN_ID == 162


@pytest.mark.parametrize(
    ("text", "language", "ids"),
    [
        (
            "The tide was out.",
            "en",
            "27 60 69 28 49 63 60 0 75 64 59 60 0 78 56 74 0 70 76 75 13 27 14 60 69 28",
        ),
        (
            "Où est la gare, s’il vous plaît ?",
            "fr",
            "27 61 73 28 44 76 89 0 60 74 75 0 67 56 0 62 56 73 60 11 0 74 6 64 67 0 77 70 76 74 0"
            " 71 67 56 64 91 75 29 27 14 61 73 28",
        ),
        (
            "안녕하세요.",
            "ko",
            "27 66 70 28 106 114 138 97 120 154 113 114 104 119 106 126 13 27 14 66 70 28",
        ),
    ],
)
def test_ids_are_those_of_the_official_clients(text: str, language: str, ids: str) -> None:
    assert encode(text, language) == [int(number) for number in ids.split()]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("Hello", "Hello."),
        ("ﬁne Ｆｕｌｌ ① x² ™ №5", "fine Full 1 x2 TM No5."),
        ("a🙂b🇫🇷c🚀d☀e✂f🧠g🪐h👍🏽i👩\u200d🔬j☆k", "abcdefghijk."),
        ("♥a♡b©c\\d", "abcd."),
        ("a–b—c‑d\u2010e\u2012f", "a-b-c-d-e-f."),
        ("“a” (‘b’) `c`", "\"a\" ('b')'c'"),
        ("a_b [c] d|e/f#g → h ← i", "a b c d e f g h i."),
        ("zero\u200b width\u200d \u200ctext\ufe0f\ufe0e", "zero width text."),
        ("me@home", "me at home."),
        ("fruit, e.g., figs, i.e., sweet", "fruit, for example, figs, that is, sweet."),
        ("E.g., e.g. I.e., i.e.", "E.g., e.g. I.e., i.e."),
        ("Ça va ? Oui ! a ; b : c , d . e '", "Ça va? Oui! a; b: c, d. e'"),
        ("a  ,b", "a ,b."),
        ("a ! , b", "a!, b."),
        ("\"\"\"a\"\" (''b''')", "\"a\" ('b')"),
        ("  a \t b\r\n\n c\u00a0d\u2003e ", "a b c d e."),
        ("Wait…", "Wait..."),
        ("½ of a kilo", "1 2 of a kilo."),
        ("Œuvre, ex æquo, Ætna", "œuvre, ex aequo, Aetna."),
        ("soft\u00adhyphen \ufeffmark \u200eleft\u2060", "softhyphen mark left."),
        ("−5 o\u02bcclock 5′ 6″", "-5 o'clock 5' 6'"),
        ("• one · two", "one two."),
        ("좋아요。", "좋아요."),
    ],
)
def test_text_is_cleaned_up_before_the_lookup(text: str, result: str) -> None:
    assert spoken(text) == result


@pytest.mark.parametrize("end", [*".!?;:,'\")}」』】〉》›»"])
def test_no_full_stop_is_added_after_an_ending_mark(end: str) -> None:
    assert normalize("word" + end) == "word" + end


@pytest.mark.parametrize("end", ["a", "1", "-", "~", "$", "«", "(", ">"])
def test_a_full_stop_is_added_after_anything_else(end: str) -> None:
    assert normalize("word" + end) == f"word{end}."


def clean_up_as_specified(text: str) -> str:
    """The official clean-up written out step by step, with the corrections we make."""
    text = unicodedata.normalize("NFKD", text)
    text = re.sub(
        "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f700-\U0001f77f"
        "\U0001f780-\U0001f7ff\U0001f800-\U0001f8ff\U0001f900-\U0001f9ff\U0001fa00-\U0001fa6f"
        "\U0001fa70-\U0001faff\u2600-\u26ff\u2700-\u27bf\U0001f1e6-\U0001f1ff]",
        "",
        text,
    )
    text = re.sub("[\u00ad\u2060\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)
    for old, new in zip("\u02bc\u2032\u2044•·Œ。", "''   œ.", strict=True):
        text = text.replace(old, new)
    text = text.replace("æ", "ae").replace("Æ", "Ae")
    for old in "\u2013\u2011\u2014\u2010\u2012\u2212":
        text = text.replace(old, "-")
    for old, new in zip("_“”‘’´`[]|/#→←", " \"\"''''       ", strict=True):
        text = text.replace(old, new)
    text = re.sub("[♥☆♡©\\\\\u200b-\u200d\ufe0e\ufe0f]", "", text).replace("@", " at ")
    text = text.replace("e.g.,", "for example, ").replace("i.e.,", "that is, ")
    for mark in ",.!?;:'":
        text = text.replace(" " + mark, mark)
    for quote in "\"'`":
        while quote * 2 in text:
            text = text.replace(quote * 2, quote)
    text = re.sub(r"\s+", " ", text).strip()
    return text if not text or re.search("[.!?;:,'\")\\]}…。」』】〉》›»]$", text) else text + "."


@relaxed
@given(messy)
@example("´ ½ ‑ \u200b. e.g., ''\u200b'' 🙂 , ♥")
def test_normalize_does_the_specified_steps_in_order(text: str) -> None:
    expected = clean_up_as_specified(text)
    if expected:
        assert normalize(text) == expected
    else:
        with pytest.raises(EmptyText):
            normalize(text)


@pytest.mark.parametrize("text", ["", " \n\t", "🙂🎉", "👩\u200d🔬 ☀\ufe0f", "[ ] _ #", "©"])
def test_a_text_with_nothing_left_is_refused_with_advice(text: str) -> None:
    with pytest.raises(EmptyText, match="write at least one word"):
        normalize(text)
    with pytest.raises(EmptyText):
        encode(text, "en")


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownLanguage, match="'de'.*en, ko, es, pt, fr"):
        encode("Hallo", "de")
    with pytest.raises(UnknownLanguage):
        estimate_seconds("Hallo", "de", 1.0)


def test_every_language_is_wrapped_in_its_own_readable_tags() -> None:
    for language in LANGUAGES:
        characters = [VOCABULARY[number] for number in encode("a", language)]
        assert "".join(characters) == f"<{language}>a.</{language}>"


@pytest.mark.parametrize("character", "=^{}øßı¥°å你あ곬®\u0000\U00020000\U0001fb00")
def test_a_character_outside_the_vocabulary_is_unknown_and_reported(character: str) -> None:
    assert UNKNOWN_ID in encode("a" + character, "en")
    assert unknown_characters(f"a {character} b {character}") == [character]


@pytest.mark.parametrize(
    "text",
    [
        "naïve façade àéîõüñç œuvre",
        "¿Qué? ¡Sí! 5 € £3 «a» 100% ~ <b> + &*",
        "각힣ㅋㅋ",
        "“‘–—…`´#@_[]|/\\",
    ],
)
def test_everyday_characters_are_all_known(text: str) -> None:
    assert is_readable("a" + text)
    assert unknown_characters(text) == []


def test_unknown_letters_are_named_whole_once_and_in_order() -> None:
    assert unknown_characters("Smørrebrød på Å: 3 × 你好, 你") == ["ø", "å", "Å", "×", "你", "好"]
    assert unknown_characters("a\u030a x\u030a") == ["å", "x\u030a"]


@relaxed
@given(messy.map("a".__add__))
def test_unknown_characters_are_reported_exactly_when_an_unknown_id_is_used(text: str) -> None:
    assert (unknown_characters(text) == []) == is_readable(text)


@relaxed
@given(messy.map("a".__add__), st.sampled_from(LANGUAGES))
def test_there_is_one_id_per_character_and_each_has_an_embedding_row(
    text: str, language: str
) -> None:
    ids = encode(text, language)
    assert len(ids) == len(normalize(text)) + 9
    assert 0 <= min(ids) and max(ids) <= UNKNOWN_ID


def test_a_text_is_cleaned_up_the_same_whether_typed_composed_or_not() -> None:
    text = "Où ça? 안녕 å"
    for form in ("NFC", "NFD"):
        assert encode(unicodedata.normalize(form, text), "fr") == encode(text, "fr")
        assert unknown_characters(unicodedata.normalize(form, text)) == ["å"]


def test_a_hundred_english_characters_are_estimated_at_five_to_nine_seconds() -> None:
    sentence = "The ferry leaves at nine, so we walked down to the harbour early and had our coffee"
    sentence += " by the water."
    assert 5 < estimate_seconds(sentence, "en", 1.0) * 100 / len(sentence) < 9


def test_estimates_count_syllables_digits_and_stops_and_follow_speed() -> None:
    korean = "안녕하세요 저는 학생입니다"
    assert 0.15 < estimate_seconds("가나다라마바사아자차", "ko", 1.0) / 10 < 0.2
    assert estimate_seconds(unicodedata.normalize("NFD", korean), "ko", 1.0) == (
        estimate_seconds(korean, "ko", 1.0)
    )
    assert estimate_seconds("1984", "en", 1.0) > 2 * estimate_seconds("then", "en", 1.0)
    assert estimate_seconds("No. No. No.", "en", 1) > estimate_seconds("No no no no", "en", 1)
    long = "word " * 50
    assert estimate_seconds(long, "es", 2.0) == pytest.approx(estimate_seconds(long, "es", 1) / 2)
    assert estimate_seconds("a", "en", 2.0) == 0.3


def test_letters_with_endless_accents_are_named_but_not_kept() -> None:
    letter = "x" + "\u0336" * 50_000
    assert unknown_characters(f"a {letter} b") == [letter]
    body = SpeechBody(text=f"a {letter} b", language="en")
    (told,) = warnings(body, read_text(body.text))
    assert len(told) < 200
