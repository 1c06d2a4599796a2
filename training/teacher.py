"""The teacher: espeak-ng through its C library, with the times of its words and phonemes.

Debian: `apt-get install libespeak-ng1`. The program is GPL-3; its output, which is all that is
used here, is not covered by that licence.
"""

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_char,
    c_char_p,
    c_int,
    c_short,
    c_uint,
    c_void_p,
)
from dataclasses import dataclass

import numpy as np

LIBRARY = "libespeak-ng.so.1"
SAMPLE_RATE = 22050
SYNCHRONOUS, BUFFER_MS, PHONEME_EVENTS, UTF8 = 2, 4000, 1, 1
RATE, PITCH, RANGE = 1, 3, 4
WORD, PHONEME = 1, 7


class _Id(Union):
    _fields_ = [("number", c_int), ("name", c_void_p), ("string", c_char * 8)]


class _Event(Structure):
    _fields_ = [
        ("type", c_int),
        ("unique_identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", _Id),
    ]


@dataclass(frozen=True)
class Word:
    first: int  # character of the text where it begins
    length: int  # characters
    start_s: float


@dataclass(frozen=True)
class Phone:
    name: str
    start_s: float


@dataclass(frozen=True, eq=False)
class Speech:
    samples: np.ndarray  # (N,) float32 in [-1, 1], 22,050 Hz
    words: list[Word]
    phones: list[Phone]  # without pauses and stress marks


class Teacher:
    """One per process: the library keeps its state in globals."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise SystemExit(
                f"{LIBRARY} is missing: apt-get install espeak-ng libespeak-ng1 ({error})"
            ) from error
        if self._lib.espeak_Initialize(SYNCHRONOUS, BUFFER_MS, None, PHONEME_EVENTS) != SAMPLE_RATE:
            raise SystemExit("espeak-ng did not start at 22,050 Hz")
        kind = CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))
        self._callback = kind(self._receive)
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_SetVoiceByName.argtypes = [c_char_p]
        self._pieces: list[np.ndarray] = []
        self._words: list[Word] = []
        self._phones: list[Phone] = []
        self._settings: tuple[str, int, int, int] | None = None

    def _receive(self, samples: object, n: int, events: object) -> int:
        if samples and n:
            self._pieces.append(np.ctypeslib.as_array(samples, (n,)).copy())
        i = 0
        while events[i].type:  # type: ignore[index]
            event = events[i]  # type: ignore[index]
            if event.type == WORD:
                start = event.sample / SAMPLE_RATE
                self._words.append(Word(event.text_position - 1, event.length, start))
            elif event.type == PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self._phones.append(Phone(name, event.sample / SAMPLE_RATE))
            i += 1
        return 0

    def speak(
        self, text: str, voice: str, pitch: int = 50, inflection: int = 0, rate: int = 175
    ) -> Speech:
        """`voice` such as "en-us+m1"; inflection 0 is monotone; rate is words a minute."""
        if self._settings != (voice, pitch, inflection, rate):
            if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
                raise SystemExit(f"espeak-ng has no voice {voice!r}")
            for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, inflection)):
                self._lib.espeak_SetParameter(parameter, value, 0)
            self._settings = (voice, pitch, inflection, rate)
        self._pieces, self._words, self._phones = [], [], []
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        self._lib.espeak_Synchronize()
        pieces = self._pieces or [np.zeros(0, np.int16)]
        samples = np.concatenate(pieces).astype(np.float32) / 32768
        return Speech(samples, self._words, self._phones)
