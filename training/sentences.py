"""Endless sentences to train on, from own words and from the word lists of Debian.

Every text is a function of its random generator alone. Words that are held out never occur in
them: a fixed thirtieth of the long word list, chosen by checksum, so that "unseen" means it.
"""

import random
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from training import words_en as en
from training import words_other as other

DICTIONARIES = {  # package: licence
    "en": "/usr/share/dict/american-english",  # wamerican: public domain
    "es": "/usr/share/dict/spanish",  # wspanish: GPL-2+
    "pt": "/usr/share/dict/portuguese",  # wportuguese: GPL-2+ or LGPL-2.1+ or MPL-1.1
    "fr": "/usr/share/dict/french",  # wfrench: GPL-2+
}
HELD_OUT_OF = 30  # one word in so many


def is_held_out(word: str) -> bool:
    return zlib.crc32(word.lower().encode()) % HELD_OUT_OF == 7


@cache
def own_words() -> frozenset[str]:
    """Every English word that the templates use, in lower case."""
    found: set[str] = set()
    for value in vars(en).values():
        if isinstance(value, tuple):
            for text in value:
                text = " ".join(text) if isinstance(text, tuple) else text
                found.update(re.findall(r"[a-z']+", text.lower()))
    return frozenset(found)


@cache
def dictionary(language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words for training and words held out, in a fixed order."""
    path = Path(DICTIONARIES[language])
    if not path.exists():
        raise SystemExit(
            f"{path} is missing: apt-get install wamerican wspanish wfrench wportuguese"
        )
    lines = path.read_text(encoding="utf-8").split()
    usable = [w for w in lines if w.islower() and w.isalpha() and 3 <= len(w) <= 13]
    own = own_words() if language == "en" else frozenset()
    seen = [w for w in usable if not is_held_out(w) or w in own]
    unseen = [w for w in usable if is_held_out(w) and w not in own]
    return tuple(seen), tuple(unseen)


class English:
    """One sentence at a time: `sentence()` as people write, `words()` for spelling."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.seen = dictionary("en")[0]

    def pick(self, words: Sequence[str]) -> str:
        return self.rng.choice(words)

    def noun_phrase(self, depth: int = 0) -> str:
        rng, roll = self.rng, self.rng.random()
        if roll < 0.12:
            return self.pick(en.NAMES)
        adjective = self.pick(en.ADJECTIVES) if rng.random() < 0.4 else ""
        if rng.random() < 0.06:
            adjective = f"{self.pick(en.ADVERBS[:6])} {self.pick(en.ADJECTIVES)}"
        if roll < 0.35:
            head = f"{self.pick(en.DETERMINERS_MANY)} {adjective} {self.noun(en.NOUNS_MANY)}"
        else:
            determiner, noun = self.pick(en.DETERMINERS), self.noun(en.NOUNS)
            if determiner == "a" and (adjective or noun)[0] in "aeiou":
                determiner = "an"
            head = f"{determiner} {adjective} {noun}"
        if depth == 0 and rng.random() < 0.18:
            head += f" {self.pick(en.PREPOSITIONS)} {self.noun_phrase(1)}"
        return head

    def noun(self, usual: Sequence[str]) -> str:
        return self.pick(self.seen) if self.rng.random() < 0.15 else self.pick(usual)

    def place(self) -> str:
        if self.rng.random() < 0.2:
            return f"in {self.pick(en.PLACES)}"
        return f"{self.pick(en.PREPOSITIONS)} {self.noun_phrase(1)}"

    def clause(self) -> str:
        rng, roll = self.rng, self.rng.random()
        subject = self.pick(en.PRONOUNS) if rng.random() < 0.45 else self.noun_phrase()
        if roll < 0.32:
            it = self.pick(en.OBJECTS) if rng.random() < 0.25 else self.noun_phrase()
            text = f"{subject} {self.pick(en.VERBS_PAST)} {it}"
        elif roll < 0.5:
            text = f"{subject} {self.pick(en.VERBS_PAST_ALONE)} {self.place()}"
        elif roll < 0.68:
            text = f"{subject} {self.pick(en.MODALS)} {self.pick(en.VERBS)} {self.noun_phrase()}"
        elif roll < 0.86:
            who, verb = rng.choice(en.BE)
            what = rng.choice((
                f"{self.pick(en.ADVERBS)} {self.pick(en.ADJECTIVES)}", self.pick(en.ADJECTIVES),
                f"{self.pick(en.VERBS_ING)} {self.place()}", self.noun_phrase(),
            ))  # fmt: skip
            text = f"{who} {verb} {what}"
        else:
            text = (
                f"{subject} {self.pick(en.VERBS_PAST)} {self.number()} {self.noun(en.NOUNS_MANY)}"
            )
        if rng.random() < 0.15:
            text += f" {self.pick(en.ADVERBS)}"
        return text

    def number(self) -> str:
        rng = self.rng
        return rng.choice((
            str(rng.randint(0, 20)), str(rng.randint(20, 100)), str(rng.randint(100, 2999)),
            f"${rng.randint(1, 90)}", f"{rng.randint(1, 99)}%",
            f"{rng.randint(0, 9)}.{rng.randint(0, 9)}",
        ))  # fmt: skip

    def sentence(self) -> str:
        rng, roll = self.rng, self.rng.random()
        end = rng.choices(".!?", (88, 6, 6))[0]
        if roll < 0.05:
            text = self.pick(en.GREETINGS)
            if rng.random() < 0.3:
                text += f", {self.pick(en.NAMES)}"
        elif roll < 0.12:
            return self.pick(en.PROSE)
        elif roll < 0.22:
            text = f"{self.pick(en.QUESTIONS)} {self.pick(en.MODALS)} {self.clause()}"
            end = "?"
        elif roll < 0.40:
            text = f"{self.clause()}{rng.choice((',', ''))} {self.pick(en.CONJUNCTIONS)}"
            text += f" {self.clause()}"
        elif roll < 0.46:
            text = f"{self.pick(en.ADVERBS)}, {self.clause()}"
        elif roll < 0.50:
            text = f"{self.noun_phrase()}, {self.noun_phrase()} and {self.noun_phrase()}"
        else:
            text = self.clause()
        return _capital(text) + end

    def words(self) -> str:
        """A few words out of the long list, as a list or in a row."""
        rng = self.rng
        n = rng.choices((1, 2, 3, 4, 5, 6, 8), (2, 3, 4, 4, 3, 2, 1))[0]
        separator = rng.choices((" ", ", ", " and "), (8, 3, 1))[0]
        text = separator.join(self.pick(self.seen) for _ in range(n))
        return _capital(text) + rng.choices((".", "", "?", "!"), (8, 2, 1, 1))[0]

    def text(self, spelling: float = 0.3) -> str:
        """A line or a paragraph, up to the length that the program cuts text into."""
        rng = self.rng
        if rng.random() < spelling:
            return self.words()
        if rng.random() < 0.82:
            return self.sentence()
        target = rng.uniform(80, 390)
        text = self.sentence()
        while len(text) < target:
            more = self.words() if rng.random() < 0.15 else self.sentence()
            text += ("" if text[-1] in ".!?" else ".") + " " + more
        return text if len(text) < 420 else text[: text.rfind(" ", 0, 420)] + "."


def _capital(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


class Foreign:
    """The other languages: short plain sentences, and words."""

    def __init__(self, language: str, rng: random.Random) -> None:
        self.language, self.rng = language, rng

    def pick(self, lists: dict[str, str]) -> str:
        return self.rng.choice(lists[self.language].split("|"))

    def clause(self) -> str:
        who, what, where = self.pick(other.PEOPLE), self.thing(), self.pick(other.PLACES)
        verb = self.pick(other.VERBS)
        parts = (who, where, what, verb) if self.language == "ko" else (who, verb, what, where)
        return " ".join(part for part in parts if part)

    def thing(self) -> str:
        rng = self.rng
        if rng.random() < 0.1:
            return f"{rng.randint(2, 99)} {self.word()}"
        return self.word() if rng.random() < 0.2 else self.pick(other.THINGS)

    def word(self) -> str:
        if self.language != "ko":
            return self.rng.choice(dictionary(self.language)[0])
        # Any syllables: Hangul is written nearly as it sounds.
        leads, vowels = "ㄱㄴㄷㄹㅁㅂㅅㅇㅇㅈㅊㅋㅌㅍㅎㄲㄸㅃㅆㅉ", range(21)
        order = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
        finals = (0, 0, 0, 0, 1, 4, 8, 16, 17, 19, 21, 7)
        return "".join(
            chr(0xAC00 + (order.index(self.rng.choice(leads)) * 21 + self.rng.choice(vowels)) * 28
                + self.rng.choice(finals))
            for _ in range(self.rng.randint(1, 4))
        )  # fmt: skip

    def sentence(self) -> str:
        rng, roll = self.rng, self.rng.random()
        end = rng.choices(".!?", (84, 8, 8))[0]
        if roll < 0.15:
            text = self.pick(other.PHRASES)
        elif roll < 0.35:
            text = self.clause() + rng.choice(other.AND[self.language]) + self.clause()
        elif roll < 0.6:
            text = " ".join(self.word() for _ in range(rng.randint(1, 6)))
        else:
            text = self.clause()
        return _capital(text) + ("" if text[-1] in ".!?" else end)

    def text(self) -> str:
        text = self.sentence()
        if self.rng.random() < 0.12:
            target = self.rng.uniform(60, 110 if self.language == "ko" else 300)
            while len(text) < target:
                text += " " + self.sentence()
        return text


def text_source(language: str, rng: random.Random) -> English | Foreign:
    return English(rng) if language == "en" else Foreign(language, rng)
