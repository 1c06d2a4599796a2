import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from supertonic.audio import to_pcm16
from supertonic.characters import encode
from supertonic.config import ModelConfig
from supertonic.download import WEIGHTS
from supertonic.engine import Engine
from supertonic.errors import ConfigError, EmptyText, UnknownLanguage, UnknownVoice, WeightsError
from supertonic.loading import BUILTIN, load_engine
from supertonic.passes import plan_passes
from supertonic.utterance import Audio, Utterance, in_parts
from supertonic.voices import VOICES
from tests.random_weights import full_model, random_style

SENTENCES = {
    "en": "The kettle sings while the rain keeps falling on the quiet harbour road.",
    "ko": "오늘은 날씨가 맑고 바람이 조금 붑니다. 같이 걸을까요?",
    "es": "¿Dónde está la estación? El último tren sale a las nueve y media.",
    "pt": "Amanhã não há aulas, mas a biblioteca fica aberta até às seis.",
    "fr": "Où est la gare, s'il vous plaît? Le prochain bus part à midi.",
}


def mixed_utterances(
    count: int, longest: int = 400, languages: tuple[str, ...] = tuple(SENTENCES)
) -> list[Utterance]:
    """Every language, voice and number of steps, from two characters to `longest`."""
    utterances = []
    for i in range(count):
        language = languages[i % len(languages)]
        length = round(2 * (longest / 2) ** (i / (count - 1)))
        text = (SENTENCES[language] + " ") * math.ceil(length / len(SENTENCES[language]))
        utterances.append(
            Utterance(
                text=text[:length],
                language=language,
                voice=VOICES[i * 3 % 10],
                steps=1 + i % 8,
                speed=(0.7, 1.0, 1.05, 1.6)[i % 4],
                seed=i * 1000,
                index=i % 3,
            )
        )
    return utterances


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return load_engine("tiny", device="cpu")


@pytest.fixture(scope="module")
def full() -> Engine:
    """Full size, random weights."""
    return Engine(
        full_model(),
        {voice: random_style(voice, ModelConfig()) for voice in VOICES},
        name="random",
        description="",
        is_builtin=False,
        fingerprint="",
        device="cpu",
        precision="float32",
    )


def in_one_pass(engine: Engine, utterances: list[Utterance]) -> list[Audio]:
    """All rows in one padded batch, whatever the engine would choose on this device."""
    usual, engine.size_per_pass = engine.size_per_pass, math.inf
    try:
        return engine.synthesize(utterances)
    finally:
        engine.size_per_pass = usual


def assert_rows_do_not_depend_on_each_other(engine: Engine, utterances: list[Utterance]) -> None:
    together = in_one_pass(engine, utterances)
    for utterance, audio in zip(utterances, together, strict=True):
        alone = in_one_pass(engine, [utterance])[0].samples
        assert audio.samples.shape == alone.shape
        full_scale = max(1.0, float(np.abs(alone).max()))
        assert np.abs(audio.samples - alone).max() <= 1e-5 * full_scale
        pcm, pcm_alone = (np.frombuffer(to_pcm16(x), "<i2") for x in (audio.samples, alone))
        assert np.abs(pcm.astype(int) - pcm_alone).max() <= 1


def test_a_row_alone_equals_the_row_in_a_batch(tiny: Engine) -> None:
    assert_rows_do_not_depend_on_each_other(tiny, mixed_utterances(16, languages=tiny.languages))


def test_threads_with_a_core_each_speak_as_if_they_were_alone(tiny: Engine) -> None:
    batches = [mixed_utterances(5, languages=tiny.languages)[n:] for n in range(4)]
    alone = [tiny.synthesize(batch, cores=1) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: tiny.synthesize(batch, cores=1), batches * 3))
    for audios, expected in zip(found, alone * 3, strict=True):
        for audio, other in zip(audios, expected, strict=True):
            assert np.array_equal(audio.samples, other.samples)


def test_a_row_alone_equals_the_row_in_a_batch_in_full_size(full: Engine) -> None:
    """Random weights are louder and less smooth than trained ones: a harder test."""
    utterances = [u for u in mixed_utterances(16, longest=40) if u.steps <= 5]
    assert len(utterances) >= 10
    assert_rows_do_not_depend_on_each_other(full, utterances)


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_sample_counts_do_not_depend_on_the_batch(
    request: pytest.FixtureRequest, name: str
) -> None:
    """With float32 durations some of these would differ by a sample."""
    engine: Engine = request.getfixturevalue(name)
    text = SENTENCES["en"]
    rows = [
        Utterance(text[i % 40 : i % 40 + 3 + i % 30], "en", VOICES[i % 10], 1, 0.8 + i / 200, 0, 0)
        for i in range(150)
    ]
    ids = [encode(row.text, "en") for row in rows]
    with torch.inference_mode():
        together = engine.model.durations(engine.collate(ids, rows))
        alone = [
            engine.model.durations(engine.collate([row_ids], [row]))[0]
            for row_ids, row in zip(ids, rows, strict=True)
        ]
    assert together == alone


def test_a_finished_row_is_not_computed_any_further(tiny: Engine) -> None:
    rows_seen = []
    hook = tiny.model.vector_estimator.register_forward_pre_hook(
        lambda module, inputs: rows_seen.append(len(inputs[0]))
    )
    try:
        in_one_pass(tiny, [utterance("Hi.", steps=steps) for steps in (1, 4, 2, 4)])
    finally:
        hook.remove()
    assert rows_seen == [4, 3, 2, 2]


def utterance(text: str, **changes: object) -> Utterance:
    usual = {"language": "en", "voice": "M1", "steps": 2, "speed": 1.0, "seed": 0, "index": 0}
    return Utterance(text=text, **{**usual, **changes})


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(tiny: Engine) -> None:
    variants = [
        {},
        {},
        {"seed": 1},
        {"index": 1},
        {"voice": "F1"},
        {"voice": "M1+F1"},
        {"steps": 3},
    ]
    first, again, *others = [
        tiny.synthesize([utterance("The same sentence.", **changes)])[0].samples
        for changes in variants
    ]
    assert np.array_equal(first, again)
    for other in others:
        n = min(len(first), len(other))
        assert np.abs(first[:n] - other[:n]).max() > 1e-3


def test_results_come_in_the_order_of_the_utterances(tiny: Engine) -> None:
    texts = ["A long sentence comes first, as it happens.", "Hi.", "Now one in between."]
    audio = tiny.synthesize([utterance(text) for text in texts])
    lengths = [len(a.samples) for a in audio]
    assert lengths[1] < lengths[2] < lengths[0]
    assert tiny.synthesize([]) == []


def test_speed_divides_the_duration(tiny: Engine) -> None:
    normal, fast = tiny.synthesize([utterance("How fast?"), utterance("How fast?", speed=2.0)])
    assert len(fast.samples) == pytest.approx(len(normal.samples) / 2, abs=1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"voice": "X9"}, UnknownVoice, "voice 'X9': must be one of M1, M2"),
        ({"voice": "M1+X9"}, UnknownVoice, "voice 'M1.X9': each of a mixture must be one of M1"),
        ({"language": "xx"}, UnknownLanguage, "xx"),
        ({"text": " \n"}, EmptyText, "nothing"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"speed": 0.0}, ValueError, "speed must be above 0"),
        ({"speed": math.nan}, ValueError, "speed must be above 0"),
        ({"seed": -1}, ValueError, "must not be negative"),
    ],
)
def test_what_cannot_be_spoken_is_refused(tiny, changes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        tiny.synthesize([utterance("Fine."), utterance(**{"text": "Fine.", **changes})])


def test_passes_hold_every_row_once_and_stay_within_their_size() -> None:
    sizes = [5.0, 300.0, 40.0, 41.0, 3.0, 42.0, 5.5]
    passes = plan_passes(sizes, 128)
    assert sorted(row for rows in passes for row in rows) == list(range(7))
    assert all(len(rows) * max(sizes[r] for r in rows) <= 128 or len(rows) == 1 for rows in passes)
    assert [5, 3] not in passes and [2, 3, 5] in passes
    assert len(plan_passes(sizes, math.inf)) == 1


# The built-in voice


def test_the_builtin_voice_is_complete_and_says_what_it_is(tiny: Engine) -> None:
    assert tiny.voices == VOICES and tiny.languages == ("en",)
    assert (tiny.name, tiny.is_builtin, tiny.sample_rate) == ("tiny", True, 22050)
    assert "built-in voice" in tiny.description
    tiny.warm_up()


@pytest.mark.parametrize("voice", VOICES)
def test_a_hundred_characters_take_five_to_nine_seconds(tiny: Engine, voice: str) -> None:
    text = "The old keeper walked to the shore and counted the boats as they came home, one by one"
    text += " at dusk, all."
    assert 98 <= len(text) <= 102
    [audio] = tiny.synthesize([utterance(text, voice=voice)])
    assert 5 < len(audio.samples) / audio.sample_rate < 9


def test_builtin_length_grows_with_the_text(tiny: Engine) -> None:
    text = SENTENCES["en"] * 6
    seconds = [
        len(tiny.synthesize([utterance(text[:n])])[0].samples) / 22050 for n in (3, 20, 100, 400)
    ]
    assert all(
        0.04 * n < s < 0.1 * n + 0.4 for n, s in zip((3, 20, 100, 400), seconds, strict=True)
    )


def test_a_text_beyond_its_reach_is_spoken_in_parts(tiny: Engine) -> None:
    text = "The first part ends here, after a few words that fill it. " * 4
    parts = in_parts(utterance(text), tiny.longest_text)
    assert len(parts) > 1 and all(len(part.text) <= tiny.longest_text for part in parts)
    assert " ".join(part.text for part in parts) == text.strip()
    [whole], spoken = tiny.synthesize([utterance(text)]), tiny.synthesize(parts)
    joined = np.concatenate([audio.samples for audio in spoken])
    assert np.abs(whole.samples - joined).max() < 1e-5
    assert in_parts(utterance(text), 1000) == [utterance(text)]

    short, heard = utterance("A short one."), {0: [], 1: []}
    both = tiny.synthesize([utterance(text), short], lambda i, samples: heard[i].append(samples))
    for i, expected in enumerate((whole, *tiny.synthesize([short]))):
        assert len(heard[i]) > 1 and np.array_equal(np.concatenate(heard[i]), both[i].samples)
        assert np.abs(both[i].samples - expected.samples).max() < 1e-5


def test_a_language_it_was_not_trained_on_is_refused(tiny: Engine) -> None:
    for language in set(SENTENCES) - set(tiny.languages):
        with pytest.raises(UnknownLanguage, match=f"speaks en, not '{language}'"):
            tiny.synthesize([utterance(SENTENCES[language], language=language)])


# Loading


def test_an_absent_model_directory_means_the_builtin_voice(tmp_path: Path) -> None:
    assert load_engine("auto", tmp_path, device="cpu").is_builtin


def test_a_model_directory_with_weights_wins(tiny: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "own-voice"
    shutil.copytree(BUILTIN, directory)
    by_default, named = load_engine("auto", directory), load_engine(str(directory))
    assert (by_default.name, by_default.is_builtin) == ("supertonic-2", False)
    assert (named.name, named.is_builtin) == ("own-voice", False)
    assert named.fingerprint == by_default.fingerprint == tiny.fingerprint


@pytest.mark.parametrize("changed", ["config.json", "voice_styles/F3.json", WEIGHTS])
def test_the_fingerprint_follows_what_changes_the_sound(
    tiny: Engine, tmp_path: Path, changed: str
) -> None:
    shutil.copytree(BUILTIN, tmp_path / "voice")
    path = tmp_path / "voice" / changed
    if changed == "config.json":
        path.write_text(path.read_text().replace("22050", "24000"))
    elif changed == WEIGHTS:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_text(path.read_text() + " ")
    assert load_engine(str(tmp_path / "voice")).fingerprint != tiny.fingerprint


def test_a_directory_without_weights_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="supertonic download"):
        load_engine("supertonic-2", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"precision": "int4"},
            "precision 'int4' is not supported; this version has auto, float32",
        ),
        ({"device": "abacus"}, "device 'abacus' is not one of auto, cpu, cuda"),
        ({"device": "cpu:0"}, "device 'cpu:0' is not one of auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' was asked for; CUDA devices here: "),
    ],
)
def test_settings_that_do_not_exist_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_engine("tiny", **arguments)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("ldim"), "missing key ldim"),
        (lambda c: c["vocoder"].pop("width"), r"missing key vocoder\.width"),
        (lambda c: c.update(n_mels=80), "unknown key n_mels"),
        (lambda c: c["text_encoder"].update(heads=0), r"text_encoder\.heads: expected a positive"),
        (lambda c: c["vocoder"].update(dilations=[1, "2"]), r"vocoder\.dilations: expected a list"),
        (
            lambda c: c["text_encoder"].update(heads=5),
            r"text_encoder\.heads: 5 does not divide 128",
        ),
        (lambda c: c.update(vocoder=7), "vocoder.: expected an object, got 7"),
        (lambda c: c.update(vocabulary=100), "vocabulary: expected 163, got 100"),
    ],
)
def test_an_impossible_config_is_refused_by_key(tmp_path: Path, spoil, message: str) -> None:
    shutil.copytree(BUILTIN, tmp_path / "voice")
    path = tmp_path / "voice" / "config.json"
    config = json.loads(path.read_text())
    spoil(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load_engine(str(tmp_path / "voice"))


def test_slices_are_heard_in_order_and_are_the_audio(tiny: Engine) -> None:
    said = [utterance("A sentence that is long enough for some slices."), utterance("Another.")]
    heard: list[list[np.ndarray]] = [[], []]
    audio = tiny.synthesize(said, lambda i, samples: heard[i].append(samples))  # says None
    for whole, pieces, expected in zip(audio, heard, tiny.synthesize(said), strict=True):
        assert np.array_equal(whole.samples, np.concatenate(pieces))
        assert np.abs(whole.samples - expected.samples).max() <= 1e-5
    assert len(heard[0]) >= 3 and len(heard[0][0]) / tiny.sample_rate < 0.3


def test_who_is_in_a_hurry_gets_the_rest_in_one_piece(tiny: Engine) -> None:
    said, heard = [utterance("A sentence that is long enough for some slices.")], []

    def hurry(i: int, samples: np.ndarray) -> bool:
        heard.append(samples)
        return True

    [whole] = tiny.synthesize(said, hurry)
    assert len(heard) == 2 and np.array_equal(whole.samples, np.concatenate(heard))
    assert np.abs(whole.samples - tiny.synthesize(said)[0].samples).max() <= 1e-5


def test_what_slices_save_is_measured_and_grows_with_the_audio(tiny: Engine) -> None:
    tiny.warm_up()
    assert tiny.slices_save_s(0.2) == 0.0
    assert 0 < tiny.slices_save_s(2.0) < tiny.slices_save_s(8.0)


def test_what_is_no_sound_is_an_error_and_not_silence() -> None:
    engine = load_engine("tiny", device="cpu")
    style = engine._styles["M1"]
    engine._styles["M1"] = replace(style, ttl=np.full_like(style.ttl, np.nan))
    utterance = Utterance("Hello.", "en", "M1", 2, 1.0, 1, 0)
    for on_slice in (None, lambda i, samples: None):
        with pytest.raises(FloatingPointError, match="not all finite"):
            engine.synthesize([utterance], on_slice)


def test_hangul_beyond_the_ids_a_model_takes_is_spoken_in_parts() -> None:
    text = "안녕하세요 반갑습니다. " * 90
    utterance = Utterance(text.strip(), "ko", "M1", 2, 1.0, 1, 0)
    parts = in_parts(utterance, 2000)
    assert len(parts) > 1 and all(len(encode(part.text, "ko")) < 1000 for part in parts)
    assert "".join(part.text for part in parts).replace(" ", "") == text.replace(" ", "")


def test_a_model_that_speaks_no_english_warms_up_and_is_timed() -> None:
    from tasks.pace import Pace
    from tasks.worker import _time_batches

    engine = load_engine("tiny", device="cpu")
    engine.languages = ("ko",)
    with pytest.raises(UnknownLanguage):
        engine.synthesize([Utterance("Hello.", "en", "M1", 2, 1.0, 0, 0)])
    engine.warm_up()
    assert _time_batches(engine, Pace()).of([1.0]) > 0
