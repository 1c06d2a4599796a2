"""Who asks for what, and when: arrivals at random, and people who listen to the end.

Every request has the moment at which it was meant to be sent, drawn before anything is known of
how the server does. Waiting is counted from there, so a server that is slow cannot hide it by
making its clients ask later.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.sse_client import Heard, listen, post

_SENTENCES = (
    "The harbour was quiet when the last boat came in.",
    "Nobody on the pier had expected it so late in the year.",
    "A man in a grey coat counted the crates and wrote a number into his book.",
    "Then he looked up, nodded to the captain, and went back to the warm office.",
    "Rain began to fall, first a few drops and then a curtain of it.",
    "From the window one could see the lamps along the water go out, one after the other.",
    "In the morning the crates were gone, and so was the boat.",
    "Only the book was left on the table, open at an empty page.",
    "It took the town a week to notice, and a month to talk about something else.",
)


def text_of(characters: int) -> str:
    """Whole sentences, at least so many characters of them."""
    text = ""
    while len(text) < characters + 100:
        text += " ".join(_SENTENCES) + " "
    end = text.find(".", characters - 1)
    return text[: end + 1].strip()


# About 7, 17 and 46 seconds of speech.
SHORT, MEDIUM, LONG = text_of(60), text_of(240), text_of(700)
MIXED = {SHORT: 50, MEDIUM: 35, LONG: 15}
BURST = text_of(350)


@dataclass(frozen=True)
class Goal:
    """Where to ask. No seed is sent: each request gets its own, so no cache can answer it. No
    pauses either: the rival makes none. Slices are welcome; the rival has none.
    """

    port: int

    def request(self, text: str) -> bytes:
        return post({"text": text, "voice": "M1", "steps": 2, "pause_s": 0.0, "slices": True})


async def burst(goal: Goal, n_streams: int) -> list[Heard]:
    """Everybody asks at the same moment."""
    now = asyncio.get_running_loop().time() + 0.1
    request = goal.request(BURST)
    asked = [_ask(goal, request, now) for _ in range(n_streams)]
    return list(await asyncio.gather(*asked))


async def arrivals(goal: Goal, per_s: float, seconds: float, texts: dict[str, int]) -> list[Heard]:
    """Strangers who come at random, ``per_s`` of them each second on average."""
    draw = random.Random(1)
    at = asyncio.get_running_loop().time() + 0.1
    until, asked = at + seconds, []
    while (at := at + draw.expovariate(per_s)) < until:
        asked.append(_ask(goal, goal.request(_choose(draw, texts)), at))
    return list(await asyncio.gather(*asked))


async def users(
    goal: Goal,
    n_users: int,
    warm_s: float,
    seconds: float,
    texts: dict[str, int],
    think_s: float = 1.0,
) -> list[Heard]:
    """People who ask, listen to the end in real time, think for a while and ask again.

    They begin at random within the first ``warm_s``, and what they then get is left out: a
    thousand people do not sit down at the same moment.
    """
    begin = asyncio.get_running_loop().time() + 0.1
    heard: list[Heard] = []

    async def user(number: int) -> None:
        draw = random.Random(number)
        at = begin + draw.uniform(0, warm_s)
        while at < begin + warm_s + seconds:
            one = await _ask(goal, goal.request(_choose(draw, texts)), at)
            heard.append(one)
            # Who was turned away, or cut off, waits as told, thinks about it and tries again.
            ended_at = one.ended_at + one.retry_after_s if one.error else one.playback.ends_at
            at = ended_at + (draw.expovariate(1 / think_s) if think_s else 0.0)

    await asyncio.gather(*(user(number) for number in range(n_users)))
    return [one for one in heard if one.intended_at >= begin + warm_s]


async def _ask(goal: Goal, request: bytes, at: float) -> Heard:
    await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
    return await listen(goal.port, request, intended_at=at)


def _choose(draw: random.Random, texts: dict[str, int]) -> str:
    return draw.choices(list(texts), list(texts.values()))[0]


def errors(heard: Sequence[Heard], at_most: int = 3) -> list[str]:
    """A few of the reasons, to be printed."""
    return sorted({one.error for one in heard if one.error})[:at_most]
