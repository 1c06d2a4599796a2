"""The doctor on a small model with random weights: healthy, then broken one thing at a time."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from supertonic import __main__ as command_line
from supertonic.checkup import SENTENCE, check_constants, check_model, check_rows, check_speech
from supertonic.config import (
    DurationPredictorConfig,
    ModelConfig,
    TextEncoderConfig,
    VectorEstimatorConfig,
    VocoderConfig,
)
from supertonic.doctor import (
    PACKAGES,
    Level,
    Verdict,
    examine,
    fail,
    files_in,
    redis_answers,
    service,
)
from supertonic.layers import Span
from supertonic.utterance import Audio, Utterance
from supertonic.voices import VOICES
from supertonic.weights import save_weights
from tests.random_weights import random_model, random_style
from tests.stack import redis_binary, wait_for

SMALL = ModelConfig(
    n_style=6,
    style_dim=16,
    text_encoder=TextEncoderConfig(
        width=16, convnext_hidden=16, dilations=(1,), attention_layers=1, heads=2, ffn_hidden=16
    ),
    duration_predictor=DurationPredictorConfig(
        width=16, convnext_hidden=16, dilations=(1,), attention_layers=1, head_hidden=16
    ),
    vector_estimator=VectorEstimatorConfig(
        width=32, convnext_hidden=32, blocks=2, dilations=(1, 2), last_dilations=(1,),
        time_dim=8, time_hidden=16, attention_width=32,
    ),
    vocoder=VocoderConfig(width=16, convnext_hidden=16, dilations=(1, 2), head_hidden=16),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are thirty times faster without threads waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_weights(random_model(SMALL), directory / "supertonic.safetensors")
    (directory / "config.json").write_text(json.dumps(asdict(SMALL)))
    (directory / "voice_styles").mkdir()
    for voice in VOICES:
        style = random_style(voice, SMALL)
        tokens = {
            key: {"dims": [1, *values.shape], "data": [values.tolist()], "type": "float32"}
            for key, values in (("style_ttl", style.ttl), ("style_dp", style.dp))
        }
        (directory / f"voice_styles/{voice}.json").write_text(json.dumps(tokens))
    return directory


@pytest.fixture
def model_dir(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "model"))


def said(verdicts: list[Verdict], level: Level) -> str:
    return "\n".join(verdict.sentence for verdict in verdicts if verdict.level is level)


def test_a_sound_model_passes_what_random_weights_can_pass(model_dir: Path) -> None:
    verdicts = list(check_model(str(model_dir), model_dir, "cpu"))
    good = said(verdicts, Level.OK)
    for expected in (
        "the right names and shapes",
        "theta and increments equal",
        "running variance is positive",
        "10 voices load",
        "in a batch of 16",
        "padded by 50 frames",
    ):
        assert expected in good
    # Random weights do not know how long a sentence takes.
    assert "should take 5 to 9 s" in said(verdicts, Level.FAIL)


def test_the_reference_sentence_has_100_characters() -> None:
    assert len(SENTENCE) == 100


@pytest.mark.parametrize(
    ("tensor", "value", "complaint"),
    [
        ("attn.theta", 1.0, "theta is not what its formula gives"),
        ("attn.increments", 7.0, "increments is not what its formula gives"),
        ("normalizer.scale", 1.0, "the latent scale is 1, expected 0.25"),
        ("running_var", 0.0, "running variance is not positive"),
    ],
)
def test_a_constant_off_its_formula_fails(tensor: str, value: float, complaint: str) -> None:
    state = random_model(SMALL).state_dict()
    assert said(list(check_constants(state)), Level.FAIL) == ""
    for name in state:
        if name.endswith(tensor):
            state[name] = torch.full_like(state[name], value)
    assert complaint in said(list(check_constants(state)), Level.FAIL)


class Speaker:
    """Speaks a swelling tone of a chosen length and loudness, to test the listening alone."""

    voices = ("M1", "F1")
    sample_rate = 44100

    def __init__(self, seconds: float = 7, peak: float = 0.5, swells: Callable[[int], int] = abs):
        self.seconds, self.peak, self.swells = seconds, peak, swells

    def synthesize(self, utterances: list[Utterance]) -> list[Audio]:
        t = np.linspace(0, 1, int(self.seconds * self.sample_rate), dtype=np.float32)
        return [
            Audio(self.peak * np.sin(9000 * t) * np.sin(self.swells(u.steps) * t), 44100)
            for u in utterances
        ]


@pytest.mark.parametrize(
    ("speaker", "complaint"),
    [
        (Speaker(swells=lambda steps: 9), ""),
        (Speaker(swells=lambda steps: 9, seconds=4.9), "5 to 9 s, but: M1 4.9 s, F1 4.9 s"),
        (Speaker(swells=lambda steps: 9, seconds=9.1), "5 to 9 s, but: M1 9.1 s, F1 9.1 s"),
        (Speaker(swells=lambda steps: 9, peak=1.3), "below 1.2, but peaks at: M1 1.3, F1 1.3"),
        (Speaker(swells=lambda steps: 9, peak=float("nan")), "peaks at: M1 nan"),
        (Speaker(swells=lambda steps: 9, peak=0), "does not move at all for M1, F1"),
        (Speaker(swells=lambda steps: 9 * steps), "with 2 and with 5 steps correlates by"),
    ],
)
def test_listening_hears_speech_of_the_wrong_length_loudness_or_shape(
    speaker: Speaker, complaint: str
) -> None:
    failures = said(list(check_speech(speaker, fail)), Level.FAIL)  # type: ignore[arg-type]
    assert complaint in failures if complaint else failures == ""


def test_a_row_that_hears_its_neighbours_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    styles = {voice: random_style(voice, SMALL) for voice in VOICES}
    assert said(list(check_rows(random_model(SMALL), styles, "cpu")), Level.FAIL) == ""

    def edge_of_the_tensor(span: Span, x: torch.Tensor, padding: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, (padding, padding), mode="replicate")

    # The very mistake of the published graphs: a short row then sees zeros behind its end.
    monkeypatch.setattr(Span, "pad_edges", edge_of_the_tensor)
    failures = said(list(check_rows(random_model(SMALL), styles, "cpu")), Level.FAIL)
    assert "in a batch of 16" in failures and "padded by 50 frames" in failures


def test_weights_that_do_not_load_are_one_line_and_exit_code_1(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = model_dir / "supertonic.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert command_line.main(["doctor", "--model", str(model_dir), "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"FAIL  {weights}: not a complete safetensors file")
    assert all(line[:6] in ("ok    ", "warn  ", "FAIL  ") for line in lines)


def test_a_damaged_voice_fails_and_a_missing_one_is_a_warning(model_dir: Path) -> None:
    (model_dir / "voice_styles/M3.json").unlink()
    verdicts = list(check_model(str(model_dir), model_dir, "cpu"))
    assert said(verdicts, Level.WARN) == "no voice M3"
    (model_dir / "voice_styles/M2.json").write_text("{}")
    assert "M2.json: style_ttl" in said(list(examine(str(model_dir), model_dir, "cpu")), Level.FAIL)


def test_a_file_that_differs_from_the_manifest_fails(model_dir: Path) -> None:
    voice = model_dir / "voice_styles/M1.json"
    entry = {"file": "voice_styles/M1.json", "bytes": 1, "repo": "r/r", "revision": "main"}
    entry |= {"commit": "c" * 40, "sha256": sha256(voice.read_bytes()).hexdigest()}
    (model_dir / "manifest.json").write_text(json.dumps({"files": [entry]}))
    assert said(list(files_in(model_dir)), Level.FAIL) == ""
    voice.write_text("{}")
    assert f"{voice} is damaged" in said(list(files_in(model_dir)), Level.FAIL)


def test_an_empty_model_directory_is_a_warning_that_names_the_download(tmp_path: Path) -> None:
    assert "python -m supertonic download" in said(list(files_in(tmp_path)), Level.WARN)


def test_a_package_that_is_not_installed_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, model_dir: Path
) -> None:
    monkeypatch.setitem(PACKAGES, "no-such-package", "nobody")
    verdicts = list(examine(str(model_dir), model_dir, "cpu"))
    assert "no-such-package is not installed; nobody need it" in said(verdicts, Level.WARN)


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (b"+PONG\r\n", Level.OK, "Redis answers"),
        (b"-NOAUTH Authentication required.\r\n", Level.OK, "Redis answers"),
        (b"HTTP/1.1 400 Bad Request\r\n", Level.WARN, "is not Redis"),
    ],
)
def test_redis_is_recognised_by_its_answer_to_a_ping(
    answer: bytes, level: Level, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(64))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        verdict = redis_answers(f"redis://:secret@127.0.0.1:{port}/0")
        thread.join()
    assert asked == [b"PING\r\n"]
    assert verdict.level is level and words in verdict.sentence
    assert "secret" not in verdict.sentence


def test_a_redis_behind_a_unix_socket_is_asked_as_well(tmp_path: Path) -> None:
    at = tmp_path / "redis.sock"
    assert redis_answers(f"unix://{at}").level is Level.WARN
    process = subprocess.Popen([redis_binary(), "--port", "0", "--unixsocket", at, "--save", ""])
    try:
        # The socket's file is there before anybody listens.
        with socket.socket(socket.AF_UNIX) as sock:
            wait_for(lambda: sock.connect(str(at)) is None, what="Redis listens")
        verdict = redis_answers(f"unix://{at}?db=1")
    finally:
        process.terminate()
        process.wait(30)
    assert verdict.level is Level.OK and f"answers at {at}" in verdict.sentence


@pytest.mark.parametrize("url", ["redis://:secret@h:abc", "redis://:secret@[::1", "redis://h:1e9"])
def test_what_is_no_url_of_a_redis_is_a_failure(url: str) -> None:
    verdict = redis_answers(url)
    assert verdict.level is Level.FAIL and "SUPERTONIC_REDIS_URL" in verdict.sentence
    assert "secret" not in verdict.sentence


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "abc", "expected a whole number"),
        ("PROT", "9", "is not a setting"),
        ("RATE_LIMIT", "60", "such as 60/minute"),
        ("LOG_LEVEL", "nonsense", "expected one of DEBUG"),
        ("WEBHOOK_SECRET", "x", "at least 24"),
        ("REDIS_URL", "redis://h:abc", "expected redis://:PASSWORD@HOST"),
        ("LEXICON", "/nowhere/words.json", "No such file"),
        ("DATA_DIR", "/proc/nowhere", "/proc cannot be written"),
        ("JOBS_URL", "nosuch://me:secret@place", "Protocol not known"),
    ],
)
def test_what_the_service_does_not_start_with_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"SUPERTONIC_{name}", value)
    verdicts = list(service())
    (failure,) = [verdict for verdict in verdicts if verdict.level is Level.FAIL]
    assert failure.sentence.startswith(f"SUPERTONIC_{name}") and says in failure.sentence
    assert "secret" not in failure.sentence


def test_the_doctor_looks_at_the_settings_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERTONIC_RATE_LIMIT", "60")
    found = (verdict.sentence for verdict in examine("tiny", Path(), "cpu"))
    assert any(sentence.startswith("SUPERTONIC_RATE_LIMIT") for sentence in found)


def test_settings_that_are_right_are_one_line_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUPERTONIC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SUPERTONIC_JOBS_URL", f"file://{tmp_path}/archive")
    verdicts = list(service())
    assert [verdict.level for verdict in verdicts] == [Level.OK] * 3
    assert not (tmp_path / "data").exists(), "it only looks"


def test_no_redis_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    verdict = redis_answers(f"redis://127.0.0.1:{port}/0")
    assert verdict.level is Level.WARN and f"127.0.0.1:{port} does not answer" in verdict.sentence


def test_say_joins_all_chunks_with_their_pauses(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def frames(*options: str, mark: str = "\n\n") -> tuple[int, bytes]:
        out = tmp_path / "speech.wav"
        text = "One sentence stands here. " * 8 + mark + "And here is a second paragraph."
        arguments = ["say", text, "--model", str(model_dir), "--device", "cpu", "--out", str(out)]
        assert command_line.main([*arguments, *options]) == 0
        with wave.open(str(out)) as wav:
            return wav.getframerate(), wav.readframes(wav.getnframes())

    rate, without = frames("--seed", "1", "--pause", "0")
    _, paused = frames("--seed", "1", "--pause", "1")
    _, again = frames("--seed", "1", "--pause", "1")
    assert paused == again
    _, marked = frames("--seed", "1", "--pause", "1", mark="[pause 2.5s]")
    assert len(marked) - len(paused) == 2 * round(1.5 * rate)
    _, two = frames("--seed", "1", "--pause", "1", mark="[voice M1]")
    assert two != paused
    assert two == frames("--seed", "1", "--pause", "1", mark="[voice m1]")[1]
    seconds = (len(paused) - len(without)) / 2 / rate
    assert seconds == int(seconds) >= 2  # a second after each chunk but the last
    assert "RTF" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--voice", "X9"], "voice 'X9': must be one of"),
        (["--language", "xx"], "xx"),
        (["--model", "/nowhere"], "/nowhere: no supertonic.safetensors there"),
        (["--out", "/nowhere/speech.wav"], "/nowhere/speech.wav"),
    ],
)
def test_a_refused_say_is_one_line_and_exit_code_1(
    model_dir: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["say", "Hello.", "--model", str(model_dir), "--device", "cpu", *options]
    assert command_line.main(command) == 1
    complained = capsys.readouterr().err
    assert complained.startswith("error: ") and complaint in complained
    assert complained.count("\n") == 1


def test_steps_and_speed_out_of_range_are_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option, value in (("--steps", "51"), ("--steps", "0"), ("--speed", "2.1")):
        with pytest.raises(SystemExit):
            command_line.main(["say", "Hello.", option, value])
        assert f"{value} is not between" in capsys.readouterr().err


def test_the_built_in_voice_passes_its_checkup() -> None:
    command = [sys.executable, "-m", "supertonic", "doctor", "--model", "tiny"]
    checkup = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert checkup.returncode == 0, checkup.stdout
    verdicts = [line.split()[0] for line in checkup.stdout.splitlines()]
    assert len(verdicts) >= 15 and set(verdicts) <= {"ok", "warn"}
