"""Stage 1, the corpus: `python -m training.corpus`. The teacher reads sentences, in shards.

A shard holds texts, word and phone times, and the described frames (`latents.analyse`). Samples are
not kept: the teacher repeats itself, in all but its noise. Each shard has its own seed, so a
broken run goes on where it stopped.
"""

import argparse
import random
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from supertonic.characters import encode
from training.latents import EDGE_S, FRAME, PER_TOKEN, RATE, Space, analyse, to_tokens
from training.plan import SEED, TEACHERS, VOICES, WORK
from training.sentences import English, dictionary, text_source
from training.teacher import Phone, Speech, Teacher, Word

USUAL_RATE = 175  # words a minute, which is speed 1
OTHER_RATES = (145, 160, 190, 210, 235, 265)
SHARD = 800  # utterances
TEST_SENTENCES, TEST_UNSEEN = 150, 60
TAG_CHARACTERS = 4  # "<en>"


@dataclass(frozen=True, eq=False)
class Item:
    text: str
    language: str
    voice: str
    rate: int
    n_samples: int  # before padding to whole tokens
    words: list[Word]
    phones: list[Phone]
    envelope: Tensor  # (F, 64) float16
    voicing: Tensor  # (F,) float16

    @property
    def seconds(self) -> float:
        return self.n_samples / RATE

    @property
    def text_ids(self) -> list[int]:
        return encode(self.text, self.language)

    def tokens(self, space: Space) -> Tensor:
        """(L, 108) latents."""
        return to_tokens(self.frames(space))

    def frames(self, space: Space) -> Tensor:
        """(6 L, 18)"""
        return space.frames(self.envelope.float(), self.voicing.float(), VOICES[self.voice].pulses)

    def reading(self) -> np.ndarray:
        """Which of the text ids is being spoken at the middle of every token, (L,) float32."""
        n = len(self.envelope) // PER_TOKEN
        times, places = [0.0, EDGE_S], [0.0, float(TAG_CHARACTERS)]
        for word in self.words:
            times.append(word.start_s)
            places.append(id_position(self.text, word.first))
        last = self.phones[-1].start_s if self.phones else self.seconds
        times += [max(last, times[-1] + 0.05), self.seconds]
        places += [id_position(self.text, len(self.text)), float(len(self.text_ids))]
        middles = (np.arange(n) + 0.5) * PER_TOKEN * FRAME / RATE
        return np.interp(middles, times, np.maximum.accumulate(places)).astype(np.float32)


def id_position(text: str, character: int) -> float:
    """Where a character of the text is among its ids."""
    return TAG_CHARACTERS + len(unicodedata.normalize("NFKD", text[:character]))


def phone_name(name: str) -> str:
    """espeak's variants of one sound (t2, I2, @L …) count as that sound."""
    return name if len(name) == 1 else name.rstrip("2#-L") or name


def padded(speech: Speech) -> tuple[np.ndarray, int]:
    """Silence around it, and zeros up to whole tokens; also the length without the zeros."""
    edge = round(EDGE_S * RATE)
    samples = np.pad(speech.samples, edge)
    n = len(samples)
    return np.pad(samples, (0, -n % (FRAME * PER_TOKEN))), n


def read_aloud(
    teacher: Teacher, text: str, language: str, voice: str, rate: int
) -> tuple[Item, np.ndarray]:
    plan = VOICES[voice]
    name = f"{TEACHERS[language]}+{plan.variant}"
    speech = teacher.speak(text, name, plan.pitch, 0, rate)
    samples, n = padded(speech)
    envelope, voicing = analyse(samples, plan.hertz)
    words = [Word(w.first, w.length, w.start_s + EDGE_S) for w in speech.words]
    phones = [
        Phone(phone_name(p.name), p.start_s + EDGE_S) for p in speech.phones if p.name[:1] != "_"
    ]
    item = Item(text, language, voice, rate, n, words, phones, envelope.half(), voicing.half())
    return item, samples


def test_texts() -> tuple[list[str], list[str]]:
    """150 sentences, and 60 rows of words that no training text holds."""
    source = English(random.Random(SEED - 1))
    sentences: list[str] = []
    while len(sentences) < TEST_SENTENCES:
        text = source.clause()
        text = text[:1].upper() + " ".join(text.split())[1:] + "."
        if 24 <= len(text) <= 80 and text not in sentences and not re.search(r"\d", text):
            sentences.append(text)
    unseen = list(dictionary("en")[1])
    random.Random(SEED).shuffle(unseen)
    rows = [" ".join(unseen[3 * i : 3 * i + 3]).capitalize() + "." for i in range(TEST_UNSEEN)]
    return sentences, rows


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def make_shard(
    teacher: Teacher, language: str, number: int, forbidden: frozenset[str]
) -> list[Item]:
    rng = random.Random(f"{SEED} {language} {number}")
    source = text_source(language, rng)
    names, shares = list(VOICES), [voice.share for voice in VOICES.values()]
    items: list[Item] = []
    while len(items) < SHARD:
        text = source.text()
        rate = USUAL_RATE if rng.random() < 0.6 else rng.choice(OTHER_RATES)
        voice = rng.choices(names, shares)[0]
        if any(plain(part) in forbidden for part in re.split(r"[.!?]", text)):
            continue
        item, _ = read_aloud(teacher, text, language, voice, rate)
        # Some dictionary words make the teacher spell letters or say nothing.
        if 0.3 < item.seconds < 40:
            items.append(item)
    return items


def shard_path(language: str, number: int) -> Path:
    return WORK / "corpus" / f"{language}-{number:03d}.pt"


def save_shard(items: list[Item], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": [
            (i.text, i.language, i.voice, i.rate, i.n_samples,
             [(w.first, w.length, w.start_s) for w in i.words],
             [(p.name, p.start_s) for p in i.phones], len(i.envelope))
            for i in items
        ],
        "envelope": torch.cat([i.envelope for i in items]),
        "voicing": torch.cat([i.voicing for i in items]),
    }  # fmt: skip
    aside = path.with_suffix(".part")
    torch.save(content, aside)
    aside.rename(path)


def load_shard(path: Path) -> list[Item]:
    content = torch.load(path, weights_only=True, mmap=True)
    items, start = [], 0
    for text, language, voice, rate, n, words, phones, frames in content["rows"]:
        here = slice(start, start + frames)
        items.append(
            Item(text, language, voice, rate, n, [Word(*w) for w in words],
                 [Phone(*p) for p in phones], content["envelope"][here], content["voicing"][here])
        )  # fmt: skip
        start += frames
    return items


def load_space() -> Space:
    """Fitted on the first English shard, once; latents made with another would not fit."""
    path = WORK / "space.safetensors"
    if not path.exists():
        items = load_shard(shard_path("en", 0))
        space = Space.fit(
            torch.cat([i.envelope for i in items]).float(),
            torch.cat([i.voicing for i in items]).float(),
        )
        space.save(path)
    return Space.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=24, help="of 800 English utterances each")
    parser.add_argument("--other", type=int, default=4, help="shards of every other language")
    parser.add_argument("--languages", nargs="*", default=["en", "es", "pt", "fr", "ko"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher()
    forbidden = frozenset(plain(text) for text in test_texts()[0])
    for language in arguments.languages:
        count = arguments.shards if language == "en" else arguments.other
        for number in tqdm(range(count), desc=f"corpus {language}"):
            path = shard_path(language, number)
            if not path.exists():
                save_shard(make_shard(teacher, language, number, forbidden), path)
    load_space()


if __name__ == "__main__":
    main()
