"""Whether a chunk is worth publishing while it is still being decoded, and the publishing.

The first slice of a chunk reaches its listener earlier by what decoding the rest takes. That has a
price: smaller pieces of work, and a few messages more. So it is done only where somebody waits for
the first sound, nobody else waits behind him, and the engine has measured that it saves something.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis

from supertonic.audio import to_pcm16
from tasks.events import EventStore
from tasks.logs import facts
from tasks.messages import Chunk

if TYPE_CHECKING:
    import numpy as np

    from tasks.speaker import Synthesizer

logger = logging.getLogger(__name__)

# Several times what a message costs on its way from the worker to the listener (4 to 6 ms).
WORTH_S = 0.02
# With more chunks in a batch the first slice of the last would wait for those of all others.
FEW = 2


def pays(chunks: Sequence[Chunk], engine: "Synthesizer", now: float, is_crowded: bool) -> bool:
    """Whether to speak these chunks in slices. ``is_crowded``: other chunks are due already."""
    if is_crowded or len(chunks) > FEW:
        return False
    if not all(chunk.slices and chunk.index == 0 and chunk.due <= now for chunk in chunks):
        return False
    return engine.slices_save_s(sum(chunk.seconds for chunk in chunks)) >= WORTH_S


class SlicePublisher:
    """Publishes slices as the engine makes them; the whole chunk is published afterwards anyway.

    Once others wait, it asks the engine to come to an end: their first sound is what counts then.
    """

    def __init__(
        self,
        store: EventStore,
        chunks: Sequence[Chunk],
        ttl_s: int,
        on_first: Callable[[Chunk], None],
        is_crowded: Callable[[], bool],
    ) -> None:
        self.store, self.chunks, self.ttl_s = store, chunks, ttl_s
        self.on_first, self.is_crowded = on_first, is_crowded
        self._sent = [0] * len(chunks)

    def __call__(self, row: int, samples: "np.ndarray") -> bool:
        chunk, start = self.chunks[row], self._sent[row]
        self._sent[row] += len(samples)
        try:
            pcm = to_pcm16(samples)
            self.store.publish_slice(chunk.job_id, chunk.index, start, pcm, self.ttl_s)
            if start == 0:
                self.on_first(chunk)
        except redis.RedisError as error:
            # Nobody's loss. The whole chunk waits for Redis to come back, a slice need not.
            about = facts(job_id=chunk.job_id, chunk=chunk.index)
            logger.warning("could not publish a slice: %s", error, extra=about)
        return self.is_crowded()
