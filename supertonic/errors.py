"""What can go wrong inside the speech package. Messages say what was wrong and what would be right.

SupertonicError
├── TextError            the text cannot be spoken
│   ├── EmptyText        nothing is left to say after normalisation
│   └── SsmlError        its SSML is broken or asks for what there is not
├── UnknownLanguage
├── UnknownVoice
├── LexiconError         an entry of a lexicon cannot be used
├── ConfigError          a model's config.json is incomplete or contradicts itself
├── WeightsError         a weights file is missing, damaged or belongs to another model
├── VoiceError           a voice style file is missing, damaged or misshapen
└── DownloadError        model files could not be fetched or do not match their checksum
"""


class SupertonicError(Exception):
    """Base of every error this package raises on purpose."""


class TextError(SupertonicError):
    """The text cannot be spoken."""


class EmptyText(TextError):
    """Nothing is left to say after normalisation."""


class SsmlError(TextError):
    """The SSML is broken, or asks for what there is not."""


class UnknownLanguage(SupertonicError):
    """The language code is not one the model was trained on."""


class UnknownVoice(SupertonicError):
    """No style with that name is loaded, or a mixture of voices cannot be read."""


class LexiconError(SupertonicError):
    """An entry of a lexicon cannot be used."""


class ConfigError(SupertonicError):
    """A model's config.json is incomplete or contradicts itself."""


class TextTooLong(SupertonicError):
    """What a lexicon makes of a text is longer than allowed."""


class WeightsError(SupertonicError):
    """A weights file is missing, damaged or belongs to another model."""


class VoiceError(SupertonicError):
    """A voice style file is missing, damaged or misshapen."""


class DownloadError(SupertonicError):
    """Model files could not be fetched or do not match their checksum."""
