"""`python -m training.judge [directory]`: what a voice is worth, against its teacher, as a table.

The recogniser has heard only the teacher. Sentences are held out of training; the rows of unseen
words hold words that no training text has. The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from supertonic.engine import Engine
from supertonic.layers import Span
from supertonic.loading import BUILTIN, load_engine
from supertonic.model import draw_noise
from supertonic.utterance import Utterance
from training import fast
from training.corpus import USUAL_RATE, Item, read_aloud, test_texts
from training.judging import Score, distortion, score
from training.latents import FRAME, PER_TOKEN, SPACE, Space, resynthesise
from training.plan import VOICES
from training.recogniser import EAR, Ear
from training.teacher import Teacher
from training.text_to_latent import READERS

STEPS = (2, 4, 8)
FIRST = "M1"
Spoken = tuple[Item, np.ndarray]
LABELS = EAR.parent / "teacher.json"
LONG_TEXTS = (
    "When the sailors came home in the evening, nobody in the village could remember how long they"
    " had been away, because the winter had been dark and cold. The old teacher opened the door of"
    " the school and rang the bell, and all the children ran down to the shore. There was music,"
    " and there was bread and hot soup for everyone.",
    "A machine that reads aloud has to know more than its letters. It must find out where a"
    " sentence ends, which of two readings of a word is meant, and how much time to give to every"
    " syllable. It should do all of that before the listener becomes impatient, and it must never"
    " lose a word on the way from the page to the loudspeaker.",
)


class Judge:
    def __init__(self, directory: Path, sentences: int) -> None:
        self.engine: Engine = load_engine(str(directory), device="cpu")
        self.plain: Engine = load_engine(str(directory), device="cpu", prepared=False)
        self.ear = Ear.load()
        self.teacher = Teacher()
        self.space = Space.load(SPACE)
        texts, rows = test_texts()
        self.texts, self.rows = texts[:sentences], rows[: max(10, sentences * 60 // 150)]
        self.lines: list[str] = []

    def teach(self, texts: list[str], voice: str) -> list[Spoken]:
        return [read_aloud(self.teacher, text, "en", voice, USUAL_RATE) for text in texts]

    def speak(self, texts: list[str], voice: str, steps: int, seed: int = 1) -> list[np.ndarray]:
        asked = [Utterance(text, "en", voice, steps, 1.0, seed, i) for i, text in enumerate(texts)]
        return [audio.samples for audio in self.engine.synthesize(asked)]

    @torch.no_grad()
    def copy(self, item: Item) -> np.ndarray:
        """The teacher's latents through the voice's own decoder."""
        latent = item.tokens(self.space)
        samples: np.ndarray = self.plain.model.vocoder(latent.T[None])[0].numpy()
        return samples

    def row(
        self,
        name: str,
        made: Iterable[np.ndarray],
        taught: list[Spoken],
        with_distortion: bool = True,
    ) -> tuple[Score, float]:
        """Judge what was made of the taught sentences, and add a line to the table."""
        labels = [[phone.name for phone in item.phones] for item, _ in taught]
        total, distances = Score(), []
        for index, samples in enumerate(tqdm(made, desc=name, total=len(taught), leave=False)):
            total += score(self.ear.listen(samples), index, labels)
            if with_distortion and index < 40:
                distances.append(distortion(samples, taught[index][1]))
        mcd = statistics.mean(distances) if distances else float("nan")
        self.line(name, len(taught), f"{total.phone_error_rate:.3f}", f"{total.retrieved:.3f}",
                  f"{mcd:.2f}" if distances else "")  # fmt: skip
        return total, mcd

    def line(self, *cells: object) -> None:
        self.lines.append("| " + " | ".join(map(str, cells)) + " |")

    def duration_error(self, taught: dict[str, list[Spoken]]) -> float:
        errors = []
        for voice, spoken in taught.items():
            for item, _ in spoken:
                [audio] = self.engine.synthesize([Utterance(item.text, "en", voice, 1, 1.0, 0, 0)])
                errors.append(abs(len(audio.samples) / audio.sample_rate / item.seconds - 1))
        return statistics.mean(errors)

    @torch.no_grad()
    def word_timing(self, taught: list[Spoken], steps: int = 4) -> float:
        """Median distance, in seconds, of the words that attention reads from the teacher's.

        At the teacher's length: how well that is predicted is measured apart.
        """
        model, errors = self.plain.model, []
        config = model.config
        field, sizes = model.vector_estimator.vector_field, config.vector_estimator
        for index, (item, _) in enumerate(taught):
            ask = Utterance(item.text, "en", item.voice, steps, 1.0, 1, index)
            batch = self.plain.collate([item.text_ids], [ask])
            n = len(item.envelope) // PER_TOKEN
            noise = torch.from_numpy(draw_noise((1, index), (config.latent_dim, n)))[None]
            text_emb = model.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
            span = Span.of(torch.tensor([n]), n, torch.float32)
            heard = model.vector_estimator.listen(text_emb, batch.text_lengths, batch.style_ttl)
            for step in range(steps - 1):
                noise = model.vector_estimator(noise, span, heard, step, torch.tensor([steps]))
            _, attended = fast.velocity(
                field, sizes.dilations, sizes.last_dilations, noise.mT, text_emb.mT,
                batch.text_lengths, batch.style_ttl, torch.tensor([1 - 1 / steps]),
            )  # fmt: skip
            weights = torch.stack([w[0, :READERS].mean(0) for w in attended]).mean(0)
            places = (weights @ torch.arange(weights.shape[1]).float()).numpy()
            places = np.maximum.accumulate(places)
            middles = (np.arange(n) + 0.5) * PER_TOKEN * FRAME / config.sample_rate
            for word in item.words[1:]:
                first = 4 + word.first  # "<en>" stands before the text
                errors.append(abs(float(np.interp(first, places, middles)) - word.start_s))
        return statistics.median(errors)


def judge(directory: Path, sentences: int, others: int) -> dict[str, float]:
    at = Judge(directory, sentences)
    at.line("system", "utterances", "phone error rate", "found", "MCD dB")
    at.line(*["---"] * 5)
    taught = at.teach(at.texts, FIRST)
    at.row(f"teacher, {FIRST}", [samples for _, samples in taught], taught)
    made = [resynthesise(at.space, i.frames(at.space), VOICES[FIRST].pulses) for i, _ in taught]
    at.row(f"resynthesis of its latents, {FIRST}", made, taught)
    at.row(f"copy through the decoder, {FIRST}", [at.copy(i) for i, _ in taught], taught)
    result: dict[str, float] = {}
    scores: dict[int, Score] = {}
    for steps in STEPS:
        scores[steps], mcd = at.row(
            f"**voice, {FIRST}, {steps} steps**", at.speak(at.texts, FIRST, steps), taught
        )
        if steps == 4:
            result |= {
                "per_m1_4steps": scores[4].phone_error_rate,
                "retrieved": scores[4].retrieved,
            }
            result["mcd_db"] = mcd
        result[f"per_m1_{steps}steps"] = scores[steps].phone_error_rate
    seeds = Score()
    labels = [[phone.name for phone in item.phones] for item, _ in taught]
    for seed in (2, 3, 4):
        for index, samples in enumerate(at.speak(at.texts[:others], FIRST, 4, seed)):
            seeds += score(at.ear.listen(samples), index, labels)
    at.line(f"voice, {FIRST}, 4 steps, three other seeds", seeds.utterances,
            f"{seeds.phone_error_rate:.3f}", f"{seeds.retrieved:.3f}", "")  # fmt: skip
    unseen = at.teach(at.rows, FIRST)
    at.row(f"teacher, {FIRST}, unseen words", [samples for _, samples in unseen], unseen, False)
    rows, _ = at.row(
        f"**voice, {FIRST}, 4 steps, unseen words**", at.speak(at.rows, FIRST, 4), unseen
    )
    result["per_unseen_words"] = rows.phone_error_rate
    by_voice = {FIRST: taught}
    for voice in at.engine.voices:
        if voice != FIRST and voice in VOICES:
            by_voice[voice] = at.teach(at.texts[:others], voice)
            at.row(f"teacher, {voice}", [s for _, s in by_voice[voice]], by_voice[voice], False)
            total, _ = at.row(
                f"voice, {voice}, 4 steps", at.speak(at.texts[:others], voice, 4), by_voice[voice]
            )
            result[f"per_{voice.lower()}_4steps"] = total.phone_error_rate
    shifted = at.speak(at.texts[1:] + at.texts[:1], FIRST, 4)
    at.row("anchor: another sentence", shifted, taught)
    rng = np.random.default_rng(0)
    noise: Callable[[int], np.ndarray] = lambda n: 0.1 * rng.standard_normal(n).astype(np.float32)  # noqa: E731
    at.row("anchor: white noise", [noise(len(s)) for _, s in taught], taught)
    result["duration_error"] = at.duration_error(by_voice)
    result["word_timing_ms"] = 1000 * at.word_timing(taught[:60])
    print("\n".join(at.lines))
    return {name: round(value, 4) for name, value in result.items()}


def save_labels() -> None:
    """What the tests need to judge without espeak-ng: texts, phones and lengths, read by M1."""
    teacher, (sentences, rows) = Teacher(), test_texts()
    content = {}
    for key, texts in (("sentences", sentences), ("unseen", rows), ("long", list(LONG_TEXTS))):
        items = [read_aloud(teacher, text, "en", FIRST, USUAL_RATE)[0] for text in texts]
        content[key] = [
            {
                "text": item.text,
                "phones": " ".join(phone.name for phone in item.phones),
                "seconds": round(item.seconds, 3),
            }
            for item in items
        ]
    LABELS.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--labels", action="store_true", help="write the labels of the tests, no more"
    )
    parser.add_argument("directory", nargs="?", type=Path, default=BUILTIN)
    parser.add_argument("--sentences", type=int, default=150)
    parser.add_argument("--others", type=int, default=40, help="sentences for every other voice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.labels:
        return save_labels()
    print(json.dumps(judge(arguments.directory, arguments.sentences, arguments.others)))


if __name__ == "__main__":
    main()
