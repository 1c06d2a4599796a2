"""The command line, ``python -m supertonic download | doctor | say``: no queue, no web."""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from supertonic import download as hub
from supertonic.errors import SupertonicError

MODEL_DIR = "models/supertonic-2"
# Chunks of one text that are computed together: enough to fill a GPU, small enough for a laptop.
CHUNKS_PER_BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with one line on stderr when it did not."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (SupertonicError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run_download(arguments: argparse.Namespace) -> int:
    wanted = hub.sources(arguments.revision, arguments.voices_revision)
    try:
        report = hub.download(
            arguments.model_dir,
            wanted,
            endpoint=arguments.endpoint,
            if_missing=arguments.if_missing,
        )
    except hub.HubUnreachable as error:
        if not arguments.if_missing:
            raise
        # The whole error says how to install by hand; who only wants to start needs the reason.
        reason = str(error).split(";")[0]
        print(f"note: using the built-in voice: {reason}. `make model` tries again.")
        return 0
    print(
        f"{arguments.model_dir}: fetched {len(report.fetched)} files, {len(report.kept)} were "
        f"complete; their licence is in {arguments.model_dir / 'LICENSE'}"
    )
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from supertonic.doctor import Level, examine

    failed = False
    for verdict in examine(*_choice(arguments)):
        print(verdict, flush=True)
        failed = failed or verdict.level is Level.FAIL
    return int(failed)


def run_say(arguments: argparse.Namespace) -> int:
    from supertonic.audio import silence, to_pcm16, write_wav
    from supertonic.chunking import PAUSE_SHARE
    from supertonic.loading import load_engine
    from supertonic.text import split_text
    from supertonic.utterance import Audio, Utterance

    seed = random.getrandbits(32) if arguments.seed is None else arguments.seed
    if not arguments.out.parent.is_dir():
        raise SupertonicError(f"{arguments.out}: there is no directory {arguments.out.parent}")
    chunks = split_text(arguments.text, arguments.language)
    engine = load_engine(*_choice(arguments))
    utterances = [
        Utterance(
            text=chunk.text,
            language=arguments.language,
            voice=chunk.voice or arguments.voice,
            steps=arguments.steps,
            speed=arguments.speed,
            seed=seed,
            index=index,
        )
        for index, chunk in enumerate(chunks)
    ]
    started = time.perf_counter()
    audios: list[Audio] = []
    for first in range(0, len(utterances), CHUNKS_PER_BATCH):
        audios += engine.synthesize(utterances[first : first + CHUNKS_PER_BATCH])
    seconds = time.perf_counter() - started
    usual = {ends_at: share * arguments.pause for ends_at, share in PAUSE_SHARE.items()}
    blocks: list[bytes] = []
    for chunk, audio in zip(chunks, audios, strict=True):
        blocks.append(to_pcm16(audio.samples))
        blocks.append(silence(chunk.silence_s(usual), audio.sample_rate))
    n_samples = sum(map(len, blocks)) // 2
    write_wav(arguments.out, blocks, engine.sample_rate, n_samples)
    audio_s = n_samples / engine.sample_rate
    print(
        f"{arguments.out}: {audio_s:.2f} s of audio in {seconds:.2f} s "
        f"(RTF {seconds / audio_s:.3f}) by {engine.name} on {engine.device}, seed {seed}"
    )
    return 0


def _choice(arguments: argparse.Namespace) -> tuple[str, Path, str, str]:
    """Which engine, as `load_engine` takes it."""
    return arguments.model, arguments.model_dir, arguments.device, arguments.precision


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m supertonic", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="download | doctor | say")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        added.add_argument(
            "--model-dir", type=Path, default=Path(_setting("MODEL_DIR", MODEL_DIR)), metavar="DIR"
        )
        return added

    download = command("download", run_download, "fetch the Supertonic 2 weights and voices")
    download.add_argument("--revision", default=_setting("MODEL_REVISION", hub.MODEL_REVISION))
    download.add_argument(
        "--voices-revision", default=_setting("VOICES_REVISION", hub.VOICES_REVISION)
    )
    download.add_argument("--endpoint", metavar="URL", help="a mirror of the hub (or HF_ENDPOINT)")
    download.add_argument(
        "--if-missing",
        action="store_true",
        help="keep files placed by hand, and do not fail without a network",
    )

    doctor = command("doctor", run_doctor, "check this machine and the model, one line each")
    say = command("say", run_say, "speak a text into a WAV file")
    for reader in (doctor, say):
        reader.add_argument(
            "--model",
            default=_setting("MODEL", "auto"),
            help="auto, tiny, supertonic-2 or a directory",
        )
        reader.add_argument("--device", default=_setting("DEVICE", "auto"))
        reader.add_argument("--precision", default=_setting("PRECISION", "auto"))

    say.add_argument(
        "text", help="what to say; [pause 1.5s] in it is a silence, [voice M1] another voice"
    )
    say.add_argument("--voice", default="F1")
    say.add_argument("--language", default="en")
    say.add_argument("--steps", type=_between(1, 50, int), default=2)
    say.add_argument("--speed", type=_between(0.5, 2.0, float), default=1.05)
    say.add_argument("--seed", type=_between(0, 2**32 - 1, int), help="random when left out")
    say.add_argument(
        "--pause", type=_between(0.0, 3.0, float), default=0.3, help="seconds after a sentence"
    )
    say.add_argument("--out", type=Path, default=Path("speech.wav"))
    return parser


def _setting(name: str, default: str) -> str:
    return os.environ.get(f"SUPERTONIC_{name}") or default


def _between(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
