"""A listener's clock: when is the sound needed, when was it there."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Playback:
    """Plays what has arrived, in order, from the first arrival on. Where nothing is left to play
    it falls silent, and goes on with the next arrival.
    """

    pieces: int = 0  # chunks, or slices of them
    audio_s: float = 0.0
    silences: list[float] = field(default_factory=list)
    first_at: float | None = None
    ends_at: float = 0.0

    def arrive(self, now: float, seconds: float) -> None:
        """Sound of so many seconds is there, whole, at this moment."""
        if self.first_at is None:
            self.first_at = self.ends_at = now
        elif now > self.ends_at:
            self.silences.append(now - self.ends_at)
            self.ends_at = now
        self.ends_at += seconds
        self.audio_s += seconds
        self.pieces += 1

    @property
    def worst_s(self) -> float:
        """The longest silence, 0 without one."""
        return max(self.silences, default=0.0)


def continuity(worst_s: Sequence[float | None], bound_s: float) -> float:
    """Share of streams, in percent, whose longest silence is at most ``bound_s``. A stream that
    failed (None) counts as one that is not: whoever asked for it heard a gap.
    """
    good = sum(worst is not None and worst <= bound_s for worst in worst_s)
    return 100 * good / len(worst_s) if worst_s else float("nan")
