"""Messages survive the wire unchanged, and what another program wrote is refused by name."""

import json
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.messages import (
    MAX_NUMBER,
    Chunk,
    Kind,
    MalformedMessage,
    Piece,
    SpeechRequest,
    State,
    Urgency,
    pieces_from_json,
    pieces_to_json,
    preview,
)
from tests.examples import a_chunk, a_job

numbers = st.floats(-MAX_NUMBER, MAX_NUMBER)
texts = st.text(st.characters(exclude_categories=["Cs"]))
chunks = st.builds(
    Chunk,
    job_id=texts,
    index=st.integers(0, 10**9),
    count=st.integers(1, 10**9),
    text=texts,
    voice=texts,
    language=texts,
    steps=st.integers(1, 50),
    speed=numbers,
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(Kind),
    urgency=st.sampled_from(Urgency),
    due=numbers,
    seconds=numbers,
    sent_at=numbers,
)


def over_the_wire(value: object) -> Any:
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8"))


@given(chunks)
def test_a_chunk_comes_out_of_the_wire_as_it_went_in(chunk: Chunk) -> None:
    received = Chunk.from_json(over_the_wire(chunk.to_json()))
    assert received == chunk
    assert isinstance(received.kind, Kind) and isinstance(received.urgency, Urgency)


@given(st.lists(st.builds(Piece, texts, numbers)))
def test_pieces_come_out_of_the_wire_as_they_went_in(pieces: list[Piece]) -> None:
    assert pieces_from_json(pieces_to_json(pieces)) == pieces


@pytest.mark.parametrize("field", [f.name for f in fields(Chunk)])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    data = a_chunk().to_json()
    del data[field]
    with pytest.raises(MalformedMessage, match=f"Chunk: {field} is missing"):
        Chunk.from_json(data)


def test_a_field_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(MalformedMessage, match="'priority' is not a field"):
        Chunk.from_json(a_chunk().to_json() | {"priority": 3})


@pytest.mark.parametrize("field", [f.name for f in fields(Chunk)])
@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, b"bytes"])
def test_a_field_of_the_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    if field == "slices" and value is True:
        value = 1  # the one field that may be true
    with pytest.raises(MalformedMessage, match=f"{field}="):
        Chunk.from_json(a_chunk().to_json() | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("index", 1.5), ("index", "1"), ("text", 5), ("due", "soon"), ("seed", 1.0)],
)
def test_numbers_and_texts_are_not_taken_for_each_other(field: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=f"{field}={value!r}"):
        Chunk.from_json(a_chunk().to_json() | {field: value})


@pytest.mark.parametrize(("field", "value"), [("kind", "film"), ("urgency", "yesterday")])
def test_an_unknown_kind_or_urgency_is_refused(field: str, value: str) -> None:
    with pytest.raises(MalformedMessage, match=value):
        Chunk.from_json(a_chunk().to_json() | {field: value})


@pytest.mark.parametrize("data", [None, "chunk", 5, [], [["job_id", "x"]]])
def test_what_is_not_an_object_is_refused(data: object) -> None:
    with pytest.raises(MalformedMessage, match="expected an object"):
        Chunk.from_json(data)


def test_a_whole_number_is_good_for_a_number_with_a_fraction() -> None:
    assert Chunk.from_json(a_chunk().to_json() | {"due": 5}).due == 5


def test_a_refused_message_is_not_changed() -> None:
    data = over_the_wire(a_chunk().to_json()) | {"urgency": "yesterday"}
    with pytest.raises(MalformedMessage):
        Chunk.from_json(data)
    assert type(data["kind"]) is str


def test_a_job_is_over_when_done_failed_or_cancelled() -> None:
    assert {s for s in State if s.is_final} == {State.DONE, State.FAILED, State.CANCELLED}
    assert a_job(count=4).progress == 0.0


def test_of_a_long_text_a_job_keeps_the_beginning_also_where_it_was_stored_whole() -> None:
    of_old = {"text": "x" * 500, "voice": "M1", "language": "en", "steps": 2, "speed": 1.0}
    request = SpeechRequest.from_json(of_old | {"seed": 7, "pause_s": 0.3})
    assert (request.preview, request.characters) == ("x" * 120 + "…", 500)
    assert SpeechRequest.from_json(asdict(request)) == request
    assert preview("x" * 120) == "x" * 120
