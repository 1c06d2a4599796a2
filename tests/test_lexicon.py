"""Words that are read in another way than they are written: what is heard, and what is shown."""

import base64
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.captions import cues
from app.errors import Problem
from app.fields import MAX_ENTRIES
from app.fragments import Fragments
from app.lexicons import Lexicons
from app.reading import validate
from app.schemas import BeginBody, SpeechBody
from app.submit import read, split, warnings
from supertonic.errors import LexiconError
from supertonic.lexicon import Entries, Lexicon, Reading
from supertonic.text import read_text, split_text
from tasks.jobfiles import JobFiles
from tasks.jobsound import Entry
from tasks.messages import Piece, pieces_from_json, pieces_to_json
from tasks.settings import Settings, SettingsError
from tests.examples import a_job
from tests.sse import joined, samples_of
from tests.stack import Stack, wait_for
from tests.test_chunking import anything, prose, relaxed, squeeze
from tests.test_fragments import heard, send, texts_in
from tests.test_jobs import appended, done
from tests.test_service import stream
from tests.test_websocket import connect, say, until_ending

NAMES = {"SQL": "sequel", "nginx": "engine X", "Dr. Who": "Doctor Who"}


def spoken(text: str, *layers: dict[str, str]) -> str:
    return Lexicon(*map(Entries, layers)).read(text).spoken


# -- what is replaced ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("SQL, or (SQL)! SQL's SQL-based _SQL_ l'SQL", "S, or (S)! S's S-based _S_ l'S"),
        ("MySQL SQLite SQL2 SQLé é.SQL", "MySQL SQLite SQL2 SQLé é.S"),
        ("sql Sql", "sql Sql"),
        ("Nginx NGINX nginx", "N N N"),
        ("New York, New Yorker, new york", "NY, n Yorker, n york"),
        ("new York's", "n York's"),
        ("C++ C+ c++ C++17", "see C+ c++ see 17"),
        ("50% AT&T ASP.NET %!", "50 percent AT and T ASP dot net percent!"),
        ("Don Don't DON’T Don's don", "D Don't DON’T D's don"),
        ("O'Neil O’Neil", "Oh Oh"),
        ("café cafe\u0301 CAFÉ cafes", "K K K cafes"),
        ("a b", "b c"),
    ],
)
def test_whole_words_and_the_longest_phrases_are_replaced_once(written: str, wanted: str) -> None:
    entries = {"SQL": "S", "nginx": "N", "new": "n", "New York": "NY", "C++": "see", "Don": "D"}
    entries |= {
        "%": "percent",
        "&": "and",
        ".NET": "dot net",
        "O'Neil": "Oh",
        "cafe\u0301": "K",
        "a": "b",
        "b": "c",
    }
    assert spoken(written, entries) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("서울은 서울에서는 서울까지도 서울입니다.", "X은 X에서는 X까지도 X입니다."),
        ("서울대학교 남서울 서울숲은", "서울대학교 남서울 서울숲은"),
        ("SQL은 좋다", "S은 좋다"),
        ("뉴욕 타임즈는 뉴욕은", "Y는 뉴욕은"),
        ("서울", "X"),
    ],
)
def test_a_korean_word_may_have_particles_behind_it(written: str, wanted: str) -> None:
    entries = {"서울": "X", "SQL": "S", "뉴욕 타임즈": "Y"}
    assert spoken(written, entries) == wanted
    decomposed = unicodedata.normalize("NFD", written)
    assert unicodedata.normalize("NFC", spoken(decomposed, entries)) == wanted


def test_of_equal_phrases_the_first_list_counts_and_of_others_the_longest() -> None:
    assert spoken("SQL", {"sql": "own"}, {"SQL": "server's"}) == "own"
    assert spoken("New York", {"New": "own"}, {"New York": "server's"}) == "server's"
    assert spoken("US us", {"us": "all", "US": "U S"}) == "U S all"


pairs = st.dictionaries(
    st.text("abcéñ안늙 .", min_size=1, max_size=6).filter(str.strip),
    st.text("xyz ,.!?", min_size=1, max_size=90).filter(lambda text: set(text) & {*"xyz"}),
    min_size=1,
    max_size=12,
)


@relaxed
@given(prose | anything, pairs, st.data())
def test_every_cut_of_what_is_spoken_is_one_of_what_is_written(
    text: str, entries: dict[str, str], data: st.DataObject
) -> None:
    plain = unicodedata.normalize("NFC", " ".join(text.split()))
    reading = Lexicon(Entries(entries)).read(plain)
    assert reading.written == plain
    cuts = data.draw(st.lists(st.integers(0, len(reading.spoken)), max_size=6).map(sorted))
    ends = [0, *cuts, len(reading.spoken)]
    parts = [reading.written_between(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    assert squeeze("".join(parts)) == squeeze(plain)


@settings(deadline=None, max_examples=200)
@given(prose, pairs, st.integers(15, 90))
def test_a_text_is_cut_as_if_it_were_written_as_it_is_read(
    text: str, entries: dict[str, str], longest: int
) -> None:
    paragraphs = read_text(text, Lexicon(Entries(entries)))
    limits = {"first_chars": longest // 2, "target_chars": longest, "max_chars": longest}
    chunks = split_text(paragraphs, "en", **limits)
    plainly = split_text("\n\n".join(each.reading.spoken for each in paragraphs), "en", **limits)
    assert [chunk.spoken for chunk in chunks] == [chunk.text for chunk in plainly]
    assert [chunk.ends_at for chunk in chunks] == [chunk.ends_at for chunk in plainly]
    if len(squeeze("".join(chunk.spoken for chunk in chunks))) == sum(
        len(squeeze(each.reading.spoken)) for each in paragraphs
    ):  # signs alone may go, if they fit into no chunk
        assert squeeze("".join(chunk.text for chunk in chunks)) == squeeze(text)


def test_a_phrase_that_is_cut_in_two_is_shown_where_it_begins() -> None:
    text = read_text("They say etc here.", Lexicon(Entries({"etc": "and so on and so forth"})))
    chunks = split_text(text, "en", first_chars=14, target_chars=14)
    assert [(chunk.text, chunk.spoken) for chunk in chunks] == [
        ("They say", "They say"),
        ("etc", "and so on"),
        ("", "and so forth"),
        ("here.", "here."),
    ]
    pieces = [Piece(chunk.text, 0.0, chunk.read_as) for chunk in chunks]
    entries = [Entry(start, 100, 0) for start in (0, 100, 200, 300)]
    assert [(cue.start_s, cue.text) for cue in cues(pieces, entries, 100, a_job("a").request)] == [
        (0.0, "They say"),
        (1.0, "etc"),
        (3.0, "here."),
    ]


def test_without_a_match_nothing_changes() -> None:
    text = "cafe\u0301 and more"
    assert Lexicon(Entries(NAMES)).read(text) == Reading(text, text)
    chunks = split_text(read_text(text, Lexicon(Entries({"SQL": "SQL"}))), "en")
    assert [chunk.read_as for chunk in chunks] == [""]
    assert pieces_to_json([Piece("Hi.", 0.3)]) == '[["Hi.", 0.3]]'


def test_how_a_piece_is_read_is_stored_with_it(tmp_path: Path) -> None:
    pieces = [Piece("SQL.", 0.3, "sequel."), Piece("Hi.", 0.0), Piece("", 0.1, "and so on")]
    assert [piece.spoken for piece in pieces] == ["sequel.", "Hi.", "and so on"]
    assert pieces_from_json(pieces_to_json(pieces)) == pieces
    newer = [[*piece.to_row(), "", "", ""][:5] + ["of a newer version"] for piece in pieces]
    assert pieces_from_json(json.dumps(newer)) == pieces
    files = JobFiles(str(tmp_path))
    files.save(a_job("job"), pieces)
    loaded = files.load("job")
    assert loaded is not None and loaded[1] == pieces


# -- what is refused, and what is told -------------------------------------------------------


@pytest.mark.parametrize(
    ("lexicon", "says"),
    [
        (["SQL"], 'such as {"SQL": "sequel"}'),
        (None, 'such as {"SQL": "sequel"}'),
        ({"SQL": 5}, "'SQL' is to be read as something that is no string"),
        ({" ": "a"}, "the entry ' ' is empty"),
        ({"SQL": "\n"}, "what the entry 'SQL' is read as is empty"),
        ({"a" * 101: "b"}, "has 101 characters; at most 100 are allowed"),
        ({"a": "b" * 201}, "has 201 characters; at most 200 are allowed"),
        ({"a": "\udc00"}, "half of a surrogate pair"),
        ({"***": "[pause 2s]"}, "'***' is read as holds a mark"),
        ({str(n): "a" for n in range(MAX_ENTRIES + 1)}, "it has 501 entries"),
    ],
)
def test_a_lexicon_that_cannot_be_used_is_refused_with_the_reason(lexicon: Any, says: str) -> None:
    with pytest.raises(Problem) as refused:
        validate(SpeechBody, {"text": "Hi.", "lexicon": lexicon})
    (error,) = refused.value.errors
    assert error["field"] == "lexicon" and says in error["detail"]
    assert "an object of at most 500 words or phrases" in error["detail"]


def test_limits_and_warnings_go_by_what_is_spoken() -> None:
    limits = Settings(max_text_chars=100)
    body = SpeechBody(text="a " * 40, language="en")
    lexicon = Lexicon(Entries({"a": "bcdef"}))
    with pytest.raises(Problem, match="has more than 100 characters as the lexicon has it read"):
        read(body, lexicon, limits)
    body = SpeechBody(text="你 is 서울 å", language="en")
    text = read(body, Lexicon(Entries({"你": "you", "서울": "Seoul"})), limits)
    assert warnings(body, text) == (
        "The model does not know these characters and cannot pronounce them: å",
    )
    assert split(SpeechBody(text="★", language="en"), read_text("★", STAR), limits) == [
        Piece("★", 0.0, "star")
    ]


STAR = Lexicon(Entries({"★": "star"}))


def test_of_fragments_that_the_lexicon_makes_too_long_nothing_is_kept() -> None:
    limits, lexicon = Settings(max_text_chars=100), Lexicon(Entries({"b": "hello"}))
    fragments = Fragments(BeginBody(language="en"), limits, lexicon)
    assert fragments.add("Well, ") is None
    with pytest.raises(Problem, match="as the lexicon has it read"):
        fragments.add("b " * 30 + ". Another one")
    with pytest.raises(Problem, match="has 101 characters"):
        fragments.add("b" * 101)
    wish = fragments.add("b. Another one")
    assert wish is not None and wish.text == "Well, b."
    fragments.add(" b" * 30)
    with pytest.raises(Problem, match="as the lexicon has it read"):
        fragments.flush()
    assert fragments.flush(is_end=True) is None, "it can never be spoken"


def test_sentences_are_not_joined_to_what_the_lexicon_makes_too_long() -> None:
    limits, lexicon = Settings(max_text_chars=100), Lexicon(Entries({"b": "hello" * 4}))
    fragments = Fragments(BeginBody(language="en"), limits, lexicon)
    first, second, third = (fragments.add(text) for text in ("b b. X", " b b. X", " b b. X"))
    assert first and second and third
    fragments.went_on(first)
    joined = fragments.joined(second)
    assert joined and joined.text == "b b. X b b."
    assert fragments.joined(third) is None


def test_a_fragment_may_have_nothing_to_say_but_for_the_lexicon() -> None:
    fragments = Fragments(BeginBody(language="en"), Settings(), STAR)
    assert fragments.add("★") is None
    wish = fragments.flush()
    assert wish is not None and wish.text == "★"


# -- the server's own ------------------------------------------------------------------------


def of_file(path: Path, text: str) -> Lexicons:
    path.write_text(text, "utf-8")
    return Lexicons(Settings(lexicon=str(path)))


def test_a_request_comes_before_the_server_and_a_language_before_all(tmp_path: Path) -> None:
    words = {
        **{"SQL": "sequel", "URL": "earl", "RPC": "R P C", "fr": "F R"},
        **{"ko": {"SQL": "시퀄"}, "es": {"URL": "u erre ele"}},
    }
    lexicons = of_file(tmp_path / "words.json", "\ufeff" + json.dumps(words))

    def heard_in(language: str, **lexicon: str) -> str:
        found = lexicons.of(SpeechBody(text="a", language=language, lexicon=lexicon))
        assert found is not None
        return found.read("SQL URL RPC fr").spoken

    assert heard_in("en") == "sequel earl R P C F R"
    assert heard_in("ko") == "시퀄 earl R P C F R"
    assert heard_in("es", SQL="ese") == "ese u erre ele R P C F R"
    assert Lexicons(Settings()).of(SpeechBody(text="a", language="en")) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value: line 1"),
        ('{"SQL": "sequel",}', "line 1 column"),
        ('["SQL"]', "expected an object such as"),
        ('{"SQL": "a", "SQL": "b"}', "'SQL' stands in it twice"),
        ('{"SQL": 5}', "'SQL' is to be read as something that is no string"),
        ('{"SQL": ""}', "'SQL' is read as is empty"),
        ('{"de": {"SQL": "a"}}', "'de' is no language; there are en, ko"),
        ('{"ko": {"SQL": {}}}', "no string"),
        ('{"SQL": "[pause:2s]"}', "holds a mark"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "words.json"
    with pytest.raises(SettingsError) as refused:
        of_file(path, text)
    assert str(refused.value).startswith(f"SUPERTONIC_LEXICON='{path}': ")
    assert says in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"SUPERTONIC_LEXICON=.*No such file"):
        Lexicons(Settings(lexicon=str(tmp_path / "none")))
    with pytest.raises(SettingsError, match=r"SUPERTONIC_LEXICON=.*Is a directory"):
        Lexicons(Settings(lexicon=str(tmp_path)))
    (tmp_path / "latin1").write_bytes('{"é": "e"}'.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"SUPERTONIC_LEXICON=.*utf-8"):
        Lexicons(Settings(lexicon=str(tmp_path / "latin1")))
    with pytest.raises(LexiconError):
        Entries({"": "a"})


def test_a_web_with_a_broken_file_does_not_start(stack: Stack) -> None:
    words = stack.folder / "words.json"
    words.write_text('{"SQL": 5}')
    stack.env["SUPERTONIC_LEXICON"] = str(words)
    stack.start_redis()
    stack.start_web()
    assert stack.processes["web"].wait(30) != 0
    assert f"SUPERTONIC_LEXICON='{words}': the entry 'SQL'" in stack.log("web")


# -- heard -----------------------------------------------------------------------------------

WRITTEN = (
    "Ask Dr. Who about SQL, and NGINX too.\n\nSQL ends a paragraph that is long enough to be cut."
)
SPOKEN = (
    "Ask Doctor Who about sequel, and engine X too.\n\n"
    "sequel ends a paragraph that is long enough to be cut."
)


def test_a_text_in_fragments_ends_also_when_its_end_cannot_be_spoken(server: Stack) -> None:
    with connect(server) as ws:
        send(ws, "begin", language="en", lexicon={"b": "hello " * 33})
        send(ws, "text", text="A first sentence. " + "b " * 300)
        send(ws, "end")
        told = heard(ws, "ended")
        (refused,) = [each for each in told if each["type"] == "error"]
        assert "as the lexicon has it read" in refused["detail"]
        assert texts_in(told) == "A first sentence."
        ws.send(say("And another text."))
        assert until_ending(ws)[-1]["type"] == "done"


def test_who_listens_hears_what_is_spoken_and_sees_what_is_written(server: Stack) -> None:
    plainly = stream(server, {"text": SPOKEN, "seed": 71})
    events = stream(server, {"text": WRITTEN, "seed": 71, "lexicon": NAMES})
    assert (joined(events) == joined(plainly)).all() and len(joined(events)) > 0
    chunks = [event.data for event in events if event.event == "chunk"]
    assert " ".join(chunk["text"] for chunk in chunks).split() == WRITTEN.split()
    assert [chunk["cached"] for chunk in chunks] == [True] * len(chunks), "the same content"
    assert events[0].data["warnings"] == []
    other = stream(server, {"text": WRITTEN, "seed": 71})
    assert len(joined(other)) != len(joined(plainly))


def test_v1_takes_it_too(server: Stack) -> None:
    body = {"voice": "M1", "seed": 72, "response_format": "wav", "speed": 1.05, "pause_s": 0.1}
    with_it = server.post("/v1/audio/speech", body | {"input": WRITTEN, "lexicon": NAMES})
    plainly = server.post("/v1/audio/speech", body | {"input": SPOKEN})
    assert with_it.status_code == 200 and with_it.content == plainly.content
    wrong = server.post("/v1/audio/speech", body | {"input": "Hi.", "lexicon": {"a": 1}})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "lexicon" and "'a'" in wrong.text


def test_a_websocket_takes_it_with_a_text_or_with_its_beginning(server: Stack) -> None:
    with connect(server) as ws:
        ws.send(say(WRITTEN, lexicon=NAMES, slices=False))
        assert texts_in(until_ending(ws)).split() == WRITTEN.split()
        lengths = []
        for text, lexicon in (("I like S", NAMES), ("I like seque", {})):
            send(ws, "begin", lexicon=lexicon, seed=73, slices=False)
            send(ws, "text", text=text)
            # One sentence: whether two are spoken together is a matter of time.
            send(ws, "text", text=("QL" if lexicon else "l") + ".")
            send(ws, "end")
            told = heard(ws, "ended")
            lengths.append([chunk["n_samples"] for chunk in told if chunk["type"] == "chunk"])
            assert texts_in(told) == ("I like SQL." if lexicon else "I like sequel.")
        assert lengths[0] == lengths[1]
        send(ws, "begin", lexicon={"★": "star"})
        send(ws, "text", text="★")
        send(ws, "end")
        assert heard(ws, "ended")[-1]["texts"] == 1
        ws.send(say("Hi.", lexicon={"a": 1}))
        assert until_ending(ws)[-1]["errors"][0]["field"] == "lexicon"


def test_a_long_job_reads_the_same_after_everything_but_the_disk_was_lost(stack: Stack) -> None:
    sentence = "Sentence {n} of this book says SQL, and that is all it says to anybody. "
    text = "".join(sentence.format(n=n) for n in range(60))
    fields = {"seed": 74, "target_chunk_chars": 100, "max_chunk_chars": 100}
    stack.start_all()
    ask = {"text": text, "lexicon": NAMES, **fields}
    job_id = stack.post("/synthesize/long", ask).json()["job_id"]
    wait_for(lambda: appended(stack, job_id) >= 3)
    for name in ("worker", "files", "web", "redis"):
        stack.kill(name)
    assert appended(stack, job_id) < 60
    stack.start_all()
    plainly = {"text": text.replace("SQL", "sequel"), **fields}
    other_id = stack.post("/synthesize/long", plainly).json()["job_id"]
    job, other = done(stack, job_id), done(stack, other_id)
    assert job["duration_seconds"] == other["duration_seconds"]
    assert job["text_preview"].startswith("Sentence 0 of this book says SQL")
    sounds = [samples_of(stack.get(f"/jobs/{each}/audio").content) for each in (job_id, other_id)]
    assert abs(sounds[0].astype(int) - sounds[1]).max() <= 1
    captions = stack.get(f"/jobs/{job_id}/captions").text
    assert captions.count("SQL") == 60 and "sequel" not in captions


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with a lexicon of its own."""
    folder = tmp_path_factory.mktemp("worded")
    (folder / "words.json").write_text(json.dumps({"SQL": "sequel", "en": {"URL": "earl"}}))
    stack = Stack(folder, SUPERTONIC_LEXICON=str(folder / "words.json"))
    stack.start_redis()
    stack.start_worker()
    stack.start_web()
    stack.wait_ready()
    yield stack
    stack.stop_all()


def test_the_servers_own_lexicon_is_for_who_says_nothing_else(worded: Stack) -> None:
    def sound(text: str, **fields: object) -> bytes:
        answer = worded.post("/synthesize", {"text": text, "seed": 75, **fields}).json()
        return base64.b64decode(answer["audio_base64"])

    assert sound("SQL and URL.") == sound("sequel and earl.")
    own = {"SQL": "squeal"}
    assert sound("SQL and URL.", lexicon=own) == sound("squeal and earl.")
