"""Something that is done again and again beside what is measured or tested."""

import threading
from abc import abstractmethod
from typing import Self


class Background(threading.Thread):
    """Takes a step every ``every_s`` seconds while it is used as a context manager."""

    def __init__(self, every_s: float) -> None:
        super().__init__(daemon=True)
        self._every_s = every_s
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.step()

    @abstractmethod
    def step(self) -> None: ...
