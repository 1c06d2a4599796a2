import string
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from supertonic.characters import LANGUAGES, encode, normalize
from supertonic.chunking import Size, cut_paragraph
from supertonic.errors import EmptyText, UnknownLanguage
from supertonic.text import Break, TextChunk, split_text

relaxed = settings(deadline=None, max_examples=120)
words = st.text("abcéñ안늙", min_size=1, max_size=12)
marks = st.sampled_from([*" " * 8, ". ", "! ", "? ", ", ", "; ", " – ", "… ", '." ', "\n", "\n\n"])
prose = st.lists(st.tuples(words, marks), min_size=1, max_size=80).map(
    lambda pairs: "".join(word + mark for word, mark in pairs)
)
anything = st.text(
    st.one_of(
        st.sampled_from("ab1 안.!?,;:\"'»—-。🙂*@ﷺ\n\u0301\u1161"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=400,
)
EACH_SENTENCE = Size(target=1, longest=10_000, shortest=0)


def texts(chunks: list[TextChunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def squeeze(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(
    "parts",
    [
        # English; a bar in these rows stands where a sentence ends.
        "Dr. Smith met Mr. Jones, Mrs. Lee and Ms. Bo.|He left.",
        "Prof. A. B. Clark Jr. has a Ph.D. in art.|Good.",
        "It runs, e.g. here, i.e. at Acme Inc. and Co. Ltd. vs. Corp. etc. today.|Yes.",
        "Turn from 5th Ave. into St. Mark's Blvd. at once.|Now.",
        "At 5 p.m. the U.S. team, led by J. R. R. Doe, won.|Then it rained.",
        "See fig. 3, no. 5 and p. 7 of Jan. 2024.|No.|I mean it.",
        "Pi is 3.14 and costs $2.50.|It came in 1984.|Then it left.",
        "1. Open the box.|2. Take it out.|(3. Keep it.)|IV. Close it.",
        "Wait...|What?!|Well... maybe not…|Oh… fine!!!",
        '"Stop!" he said.|"Why?"|She left.|(It was late.)|Rain.',
        "He said “Go.”|She said ‘No.’|[Both left.]|**Bold.**|End.",
        "Mail a.b@c.de or see www.example.com/a.b now.|Done.",
        "hello there.|how are you?|fine",
        # Korean
        "안녕하세요.|저는 학생입니다!|정말요?|네.|김 박사는 3.5점을 받았다.|끝…",
        '"가자."|그가 말했다.|좋아요~',
        # Spanish
        "El Sr. García, la Sra. Ruiz y la Dra. Paz viven en EE. UU. desde 1990.|¿Y tú?|¡Bien!",
        "Véase pág. 5, p. ej. el núm. 3 de la Avda. Sol.|Fui al mar.|Era tarde.",
        # Portuguese
        "O Sr. Silva e a Sra. Costa moram na Av. Brasil.|Tudo bem?|Sim!|Não.",
        # French
        "C'est MM. Petit et Grand, et Mmes. Petit.|Voilà.",
        "M. Dupont et Mme. Durand, cf. p. 12, sont là.|Le Dr. Petit aussi.",
        "« Bonjour ! » dit-il.|Comment ça va ?|« Bien. »|Elle sourit.",
        # Full-width marks need no space after them.
        "日本語です。|「はい！」|次は？|終わり",
    ],
)
def test_sentences_end_where_a_reader_would_end_them(parts: str) -> None:
    paragraph = parts.replace("|", " ") if "。" not in parts else parts.replace("|", "")
    pieces = cut_paragraph(paragraph, EACH_SENTENCE)
    assert [text for text, _ in pieces] == parts.split("|")


@pytest.mark.parametrize(
    "parts",
    [
        "one, two;|three four five",
        "one two:|three four five",
        "one two —|three four five",
        "one two—|three four five",
        "one two –|three four five",
        "one two -|three four five",
        "one two…|three four five",
        "one two...|three four five",
        "one… two,|three four five",
        "un « deux, »|trois quatre",
        "it is 1,000 or 10:30|or 1990–1995",
        "a well-known semi-final|and so on",
    ],
)
def test_a_sentence_without_room_is_cut_after_a_clause_else_between_words(parts: str) -> None:
    head, tail = parts.split("|")
    size = Size(target=len(head) + 2, longest=len(head) + 2, shortest=3)
    (text, kind), *_ = cut_paragraph(f"{head}{'' if head[-1] == '—' else ' '}{tail}", size)
    assert text == head
    assert kind is (Break.CLAUSE if head[-1] in ",;:—–-….»" else Break.WORD)


def test_a_word_is_cut_only_when_it_is_longer_than_a_chunk() -> None:
    chunks = split_text("see " + "x" * 70 + " there", "en", first_chars=30, max_chars=30)
    assert texts(chunks) == ["see", "x" * 30, "x" * 30, "x" * 10 + " there"]
    assert [chunk.ends_at for chunk in chunks] == ["word", "word", "word", "end"]


def test_a_cut_inside_a_word_keeps_accents_and_jamo_with_their_letter() -> None:
    for letter in ("e\u0301", "\u1112\u1161\u11ab"):
        for chunk in split_text(letter * 40, "ko", first_chars=19, max_chars=19):
            assert chunk.text == letter * (len(chunk.text) // len(letter))


def test_whole_sentences_are_packed_up_to_the_target() -> None:
    sentence = "This is a sentence of forty characters.."[:39] + "."
    chunks = split_text(" ".join([sentence] * 20), "en")
    assert [len(text) for text in texts(chunks)] == [40, 40, 122, 286, 286, 40]
    assert [chunk.ends_at for chunk in chunks] == ["sentence"] * 5 + ["end"]


def test_korean_chunks_are_shorter_than_the_others() -> None:
    text = "저는 오늘 학교에 갔습니다. " * 60
    longest = {language: max(map(len, texts(split_text(text, language)))) for language in LANGUAGES}
    assert 100 < longest.pop("ko") <= 120
    assert all(250 < length <= 300 for length in longest.values())
    assert len(split_text(text, "ko")[0].text) <= 24


def test_a_sentence_between_target_and_maximum_stays_whole() -> None:
    long = "A long one " + "goes on, and on " * 10 + "until here."
    text = f"It starts like this, and then goes on. {long}\n\nShort and sweet is the end of it."
    chunks = split_text(text, "en", first_chars=60, target_chars=60, max_chars=400)
    assert TextChunk(long, Break.PARAGRAPH) in chunks
    assert max(map(len, texts(split_text(text, "en", max_chars=60)))) <= 60


def test_paragraphs_are_not_joined_and_single_line_breaks_are() -> None:
    chunks = split_text("Title\n \t\r\nOne\ntwo.\u2029Three.", "en")
    assert texts(chunks) == ["Title", "One two.", "Three."]
    assert [chunk.ends_at for chunk in chunks] == [Break.PARAGRAPH, Break.PARAGRAPH, Break.END]


SECOND = " Then comes a second sentence that is long enough to need a chunk of its own, or nearly."


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        # What follows the bar is left for the next chunk.
        ("A sentence that fits into the opening.", "sentence"),
        ("A sentence beyond forty characters stays whole as well.", "sentence"),
        ("A clause comes first,| and then the sentence goes on for too long, really.", "clause"),
        (
            "A clause of more than forty characters is stretched for,| and then more of it.",
            "clause",
        ),
        ("Without any clause to end at| but with a conjunction in the middle of it.", "word"),
        ("The little brown fox was running| from the enormous and very hungry wolf.", "word"),
        ("Whoever speaks extraordinarily long| words unfortunately remains unheard by all", "word"),
        ("Oh. So a tiny sentence is no chunk,| if a clause fits as well here.", "clause"),
        ("Hier soir nous sommes allés au marché| qui se trouve derrière la gare.", "word"),
        ("Ayer fuimos al mercado del pueblo| y compramos muchas cosas para cenar.", "word"),
    ],
)
def test_the_first_chunk_ends_early_but_where_one_may_take_breath(sentence: str, kind: str) -> None:
    first = sentence.split("|")[0]
    chunks = split_text(sentence.replace("|", "") + SECOND * 3, "en")
    assert (chunks[0].text, chunks[0].ends_at.value) == (first, kind)


def test_a_korean_first_chunk_ends_after_an_ending_or_a_particle() -> None:
    text = "저는 오늘 아침에 일찍 일어나서 학교에 갔습니다만 아무도 없어서 집으로 돌아왔습니다."
    first = split_text(text, "ko")[0]
    assert first.text == "저는 오늘 아침에"
    assert first.ends_at is Break.WORD


def test_a_text_hardly_longer_than_a_first_chunk_is_one() -> None:
    for more, n_chunks in (("", 1), (", or is it not such a test?", 2)):
        assert (
            len(split_text(f"Hello there, it is a test, and a short one{more}", "en")) == n_chunks
        )


def test_chunks_grow_from_the_first_to_the_usual_size() -> None:
    """Each is spoken while those before it are heard, so none may be much longer than they are."""
    sentences = " ".join(f"Number {number} is here, and so are you." for number in range(40))
    without_marks = " ".join(["word"] * 300)
    for text in (sentences, without_marks):
        lengths = [len(chunk) for chunk in texts(split_text(text, "en"))]
        assert lengths[0] <= 60 and max(lengths) > 200
        for number, length in enumerate(lengths[1:], 1):
            assert length <= 3 * sum(lengths[:number])


def test_a_first_chunk_of_the_usual_size_leaves_no_small_ones_behind_it() -> None:
    text = " ".join(f"Number {number} is here, and so are you." for number in range(40))
    lengths = [len(chunk) for chunk in texts(split_text(text, "en", first_chars=300))]
    assert min(lengths[:-1]) > 200


@relaxed
@given(prose, st.integers(20, 100))
def test_the_first_chunk_is_never_longer_than_allowed_nor_cut_inside_a_word(
    text: str, limit: int
) -> None:
    words_of_text = text.split()
    assume(any(map(str.isalnum, text)) and max(map(len, words_of_text)) < limit * 2 // 3)
    first = split_text(text, "en", first_chars=limit)[0].text
    assert len(first) <= limit
    assert first.split() == words_of_text[: len(first.split())]


def test_a_tiny_sentence_is_not_left_alone() -> None:
    body = "This sentence has a length of about fifty letters. " * 6
    for text in ("Hi. " + body, body + "Bye."):
        chunks = split_text(text, "en", target_chars=120)
        assert min(map(len, texts(chunks))) >= 20


def test_a_tiny_last_sentence_takes_company_along_if_there_is_a_sentence_to_take() -> None:
    one, two = "A sentence, quite a short one.", "Another one, and just as short."
    chunks = split_text(f"{one} {two} Bye.", "en", first_chars=64, target_chars=64)
    assert texts(chunks) == [one, f"{two} Bye."]
    assert texts(split_text(f"{one} Bye.", "en", max_chars=32)) == [one, "Bye."]


def test_the_first_spoken_chunk_is_short_even_after_a_row_of_emoji() -> None:
    chunks = split_text(
        "🎉 🎉\n\n" + "Ten words make up a sentence that is not that long. " * 9, "en"
    )
    assert chunks[0].text == "🎉 🎉 Ten words make up a sentence that is not that long."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\n\n* * *\n\nTwo.", ["One. * * *", "Two."]),
        ("🎉\n\n—\n\nOne.\n\nTwo.", ["🎉 — One.", "Two."]),
        ("One.\n\n🎉 !!!", ["One. 🎉 !!!"]),
    ],
)
def test_what_cannot_be_spoken_alone_joins_a_neighbour(text: str, expected: list[str]) -> None:
    assert texts(split_text(text, "en")) == expected


def test_a_row_of_symbols_too_long_for_any_chunk_goes_and_no_word_with_it() -> None:
    chunks = split_text("One, " + "-" * 1000 + " two.", "en")
    assert [text.replace("-", "").split() for text in texts(chunks)] == [["One,"], ["two."]]


@pytest.mark.parametrize("text", ["", " \n\n ", "🙂 🎉", "...", "?!\n\n—", "你好。"])
def test_a_text_without_a_single_readable_word_is_refused(text: str) -> None:
    with pytest.raises(EmptyText, match="write at least one word"):
        split_text(text, "en")


def test_wrong_limits_and_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 character, got 0"):
        split_text("Hello.", "en", target_chars=0)
    with pytest.raises(UnknownLanguage):
        split_text("Hallo.", "de")


@relaxed
@given(prose, st.sampled_from(LANGUAGES), st.integers(15, 200))
def test_chunks_hold_every_word_once_and_in_order(text: str, language: str, limit: int) -> None:
    chunks = split_text(text, language, max_chars=limit)
    assert squeeze("".join(texts(chunks))) == squeeze(text)
    assert chunks == split_text(text, language, max_chars=limit)


@relaxed
@given(anything, st.sampled_from(LANGUAGES), st.integers(1, 900), st.integers(1, 900))
@example("@ﷺ" * 200, "ko", 900, 900)
@example("늙" * 400, "ko", 1, 900)
def test_chunks_of_any_text_are_speakable_clean_and_within_limits(
    text: str, language: str, first: int, limit: int
) -> None:
    try:
        chunks = split_text(text, language, first_chars=first, max_chars=limit)
    except EmptyText:
        assert not set(text) & set(string.ascii_letters + string.digits)
        return
    for chunk in chunks:
        assert chunk.text == " ".join(chunk.text.split()) and len(chunk.text) <= limit
        assert normalize(chunk.text)
        assert len(encode(chunk.text, language)) < 1000
    assert [chunk.ends_at is Break.END for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    kept = [character for chunk in chunks for character in chunk.text if character.isalnum()]
    readable = set(string.ascii_letters + string.digits)
    assert [c for c in kept if c in readable] == [c for c in text if c in readable]


@relaxed
@given(prose, st.integers(20, 120))
def test_a_break_is_named_after_what_stands_there(text: str, limit: int) -> None:
    for chunk in split_text(text, "en", max_chars=limit)[:-1]:
        if chunk.ends_at is Break.SENTENCE:
            assert chunk.text.rstrip('"')[-1] in ".!?…"
        elif chunk.ends_at is Break.CLAUSE:
            assert chunk.text.rstrip('"')[-1] in ",;–….!?"


@pytest.mark.parametrize(
    "pattern",
    ["x", ".", "a, ", 'x."', "Dr. ", "안", "\u0301", "\n", "\n   ", '"', "x-", "🙂", "--"],
)
def test_fifty_thousand_characters_are_split_at_once(pattern: str) -> None:
    """Quadratic scanning would take many seconds, of this thread's own: others may be running."""
    text = "x" + pattern * (50_000 // len(pattern)) + "x"
    started = time.thread_time()
    split_text(text, "ko")
    assert time.thread_time() - started < 1.0
