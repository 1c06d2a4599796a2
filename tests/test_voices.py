import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supertonic.errors import UnknownVoice, VoiceError
from supertonic.styles import load_style, load_styles, mix
from supertonic.voices import VOICES, shares

TTL, DP = (3, 4), (2, 5)


def content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    entries = {}
    for key, shape in (("style_ttl", TTL), ("style_dp", DP)):
        tokens = rng.standard_normal((1, *shape))
        tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
        entries[key] = {"dims": [1, *shape], "data": tokens.tolist(), "type": "float32"}
    return {**entries, "metadata": {"source_file": "speaker.wav"}}


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    def write(spoil: Callable[[dict[str, Any]], None]) -> Path:
        values = content()
        spoil(values)
        path = tmp_path / "M1.json"
        path.write_text(json.dumps(values))
        return path

    return write


def test_a_style_is_read_without_its_batch_dimension(spoilt) -> None:
    style = load_style(spoilt(lambda values: None), TTL, DP)
    assert style.ttl.shape == TTL and style.dp.shape == DP
    assert style.ttl.dtype == style.dp.dtype == np.float32
    assert np.allclose(style.dp, content()["style_dp"]["data"][0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v.pop("style_dp"), "style_dp: expected an object with dims and data"),
        (lambda v: v["style_ttl"].update(dims=[1, 50, 256]), r"expected dims \[1, 3, 4\], got"),
        (lambda v: v["style_ttl"]["data"][0].pop(), r"expected data of shape \(1, 3, 4\), got"),
        (lambda v: v["style_ttl"]["data"][0][1].pop(), "style_ttl: data is not an array"),
        (lambda v: v["style_dp"]["data"][0][1].__setitem__(0, "x"), "style_dp: data is not"),
        (lambda v: v["style_dp"]["data"][0][1].__setitem__(2, 9.0), "style_dp: token 1 has length"),
        (lambda v: v["style_ttl"]["data"][0][2].__setitem__(0, float("nan")), "token 2 has length"),
        (lambda v: v["style_ttl"]["data"][0][0].__setitem__(0, float("inf")), "token 0 has length"),
    ],
)
def test_a_damaged_style_is_refused_with_the_place(spoilt, spoil, message: str) -> None:
    with pytest.raises(VoiceError, match=message):
        load_style(spoilt(spoil), TTL, DP)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="M1.json: no such voice file"):
        load_style(tmp_path / "M1.json", TTL, DP)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_something_that_is_not_a_style_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "M1.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(VoiceError, match="M1.json"):
        load_style(path, TTL, DP)


def test_known_voices_come_first_in_their_usual_order(tmp_path: Path) -> None:
    for name in ("Anna", "F1", "M2", *VOICES[5:], "M1"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content()))
    names = list(load_styles(tmp_path, TTL, DP))
    assert names == ["M1", "M2", *VOICES[5:], "Anna"]


def test_a_directory_without_voices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="expected files such as M1.json"):
        load_styles(tmp_path, TTL, DP)


@pytest.mark.parametrize(
    ("voice", "parts"),
    [
        ("M1", {"M1": 1}),
        ("M1+F2", {"M1": 0.5, "F2": 0.5}),
        (" M1 (3) + F2 ", {"M1": 0.75, "F2": 0.25}),
        ("M1(0.5)+F2(1.5)", {"M1": 0.25, "F2": 0.75}),
        ("M1+F2+M1", {"M1": 2 / 3, "F2": 1 / 3}),
        ("M1(0)+F2", {"F2": 1}),
        ("M1(7)", {"M1": 1}),
        ("a+b", {"a+b": 1}),
        ("a+b(2)", {"a+b(2)": 1}),
        ("Anna (old)+F2", {"Anna (old)": 0.5, "F2": 0.5}),
    ],
)
def test_a_voice_may_be_a_mixture(voice: str, parts: dict[str, float]) -> None:
    known = ("M1", "F2", "a+b", "a+b(2)", "Anna (old)")
    assert shares(voice, known) == pytest.approx(parts)


@pytest.mark.parametrize(
    ("voice", "reason"),
    [
        ("", "must be one of M1, F2, or a mixture such as M1.2.+F2"),
        ("m1", "must be one of M1, F2, or"),
        ("M1+", "each of a mixture must be one of M1, F2"),
        ("M1+F9", "each of a mixture must be one of M1, F2"),
        ("M1(-1)+F2", "each of a mixture"),
        ("M1(nan)+F2", "each of a mixture"),
        ("M1(12345)+F2", "each of a mixture"),
        ("M1(2+F2", "each of a mixture"),
        ("M1(0)+F2(0)", "one part at least"),
        ("+".join(["M1"] * 6), "at most 5"),
        ("+" * 1_000_000, "at most 5"),
        ("M1(" * 300_000 + ")", "must be one of"),
    ],
)
def test_what_is_neither_a_voice_nor_a_mixture_is_refused(voice: str, reason: str) -> None:
    with pytest.raises(UnknownVoice, match=reason):
        shares(voice, ("M1", "F2"))


def test_a_mixture_lies_between_its_voices(tmp_path: Path) -> None:
    (tmp_path / "M1.json").write_text(json.dumps(content()))
    other = content()
    other["style_ttl"]["data"] = np.roll(other["style_ttl"]["data"], 1, axis=2).tolist()
    (tmp_path / "F1.json").write_text(json.dumps(other))
    styles = load_styles(tmp_path, TTL, DP)
    near = mix(styles, {"M1": 0.9, "F1": 0.1})
    assert np.allclose(np.linalg.norm(near.ttl, axis=1), 1) and near.ttl.dtype == np.float32

    def away(name: str) -> float:
        return float(np.linalg.norm(near.ttl - styles[name].ttl))

    assert 0 < away("M1") < away("F1")
    assert np.allclose(near.dp, styles["M1"].dp)
    whole = mix(styles, {"M1": 1.0})
    assert np.allclose(whole.ttl, styles["M1"].ttl, atol=1e-6)
