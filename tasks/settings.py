"""Everything that can be set from outside, in one frozen dataclass read once from SUPERTONIC_*.

A variable nobody knows stops the program: a misspelt setting must not become a silent default.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "SUPERTONIC_"


class SettingsError(Exception):
    """A SUPERTONIC_ variable is unknown or holds a value that cannot be used."""


def _setting(
    default: Any,
    help_text: str,
    least: float | None = None,
    most: float | None = None,
    *,
    secret: bool = False,
) -> Any:
    about = {"help": help_text, "least": least, "most": most}
    return field(default=default, repr=not secret, metadata=about)


@dataclass(frozen=True)
class Settings:
    """One attribute per variable: ``redis_url`` is read from ``SUPERTONIC_REDIS_URL``."""

    host: str = _setting("127.0.0.1", "address the web listens on")
    port: int = _setting(8002, "port the web listens on", 1, 65_535)
    web_processes: int = _setting(2, "gunicorn processes", 1)
    web_threads: int = _setting(300, "threads per process; an open stream holds one", 4)
    wyoming_host: str = _setting(
        "", "address for Home Assistant (Wyoming); empty: `make run` starts none"
    )
    wyoming_port: int = _setting(10200, "port for Home Assistant", 1, 65_535)
    wyoming_connections: int = _setting(100, "most connections of Wyoming; each has two threads", 1)
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0", "the Redis that holds queues and events", secret=True
    )
    broker_url: str = _setting(
        "",
        "another broker for the queues: redis:// is the stock transport, amqp:// is RabbitMQ",
        secret=True,
    )
    model: str = _setting("auto", "auto, tiny, supertonic-2, or a model directory")
    model_dir: str = _setting("models/supertonic-2", "where `make model` puts weights and voices")
    model_revision: str = _setting("main", "revision of the weights repository to download")
    voices_revision: str = _setting(
        "75e6727618a02f323c720cba9478152d4bc16ca4", "revision of the voices repository to download"
    )
    data_dir: str = _setting("data", "where finished long jobs are kept; web and files share it")
    jobs_url: str = _setting("", "where finished sound goes instead: an fsspec URL", secret=True)
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _setting("auto", "auto, float32, bfloat16, or float16 (GPU only)")
    language: str = _setting("en", "language of requests that name none: en, ko, es, pt or fr")
    max_batch: int = _setting(32, "most chunks in one batch", 1, 256)
    max_wait_ms: float = _setting(
        5.0, "longest wait for company when more is known to be near", 0, 1000
    )
    max_batch_seconds: float = _setting(
        160.0, "most estimated audio seconds in one batch; a first chunk waits for no more", 1
    )
    batch_limit_s: float = _setting(
        60.0, "a batch that takes this much longer than it should ends its worker; 0: never", 0
    )
    lexicon: str = _setting("", "JSON file of words and how they are read, for all requests")
    first_chunk_chars: int = _setting(
        60, "most characters of the first chunk; Korean: 0.4 of it", 20
    )
    max_text_chars: int = _setting(50_000, "longest text accepted, but for long jobs", 1)
    max_long_text_chars: int = _setting(1_000_000, "longest text of a long job", 1)
    max_wait_s: float = _setting(
        10.0, "a listener's request is refused when sound would come later; 0: never", 0
    )
    max_long_wait_s: float = _setting(
        86_400.0, "a long job is refused when it would be done later; 0: never", 0
    )
    key_queue_s: float = _setting(
        3600.0, "most seconds of listeners' sound one API key may have waiting; 0: no limit", 0
    )
    key_long_queue_s: float = _setting(
        36_000.0, "most seconds of long jobs one API key may have waiting; 0: no limit", 0
    )
    cache_mb: int = _setting(
        64, "megabytes of finished chunks kept for equal requests; 0: nothing is shared", 0
    )
    max_audio_s: int = _setting(
        10_800, "longest sound one request may make, but for long jobs, in seconds", 1, 24_000
    )
    max_long_audio_s: int = _setting(80_000, "longest sound of a long job, in seconds", 1, 100_000)
    max_body_bytes: int = _setting(
        1_000_000, "longest request body accepted, but for files of long jobs", 1000
    )
    max_upload_bytes: int = _setting(32_000_000, "largest file accepted for a long job", 1000)
    # Not in repr: these must not end up in a log.
    api_keys: str = _setting("", "comma-separated keys; when set, requests need one", secret=True)
    api_keys_file: str = _setting("", "file of hashed keys, one a line; read again when it changes")
    admin_key: str = _setting(
        "", "key for /config/batch; without it only 127.0.0.1 may change it", secret=True
    )
    rate_limit: str = _setting("", "requests for speech per key or address, such as 60/minute")
    cors_origins: str = _setting("", "comma-separated origins whose pages may use this server")
    allowed_hosts: str = _setting("", "comma-separated names by which this server may be asked")
    proxies: int = _setting(0, "reverse proxies in front whose X-Forwarded headers are true", 0)
    stream_ttl_s: int = _setting(600, "how long a finished stream's events stay in Redis", 5)
    delivered_ttl_s: int = _setting(60, "how long delivered audio of a resumable stream is kept", 1)
    job_ttl_s: int = _setting(7 * 86400, "how long a long job and its file are kept", 60)
    job_window: int = _setting(32, "chunks of one long job in the queue at a time", 1)
    webhook_secret: str = _setting("", "signs webhooks; without it none are accepted", secret=True)
    webhook_allow_private: str = _setting("", "hosts and networks webhooks may reach all the same")
    stall_s: float = _setting(20.0, "silence after which chunks are sent again", 1)
    patience_s: float = _setting(60.0, "how long a stream waits for a worker", 1)
    visibility_timeout_s: float = _setting(
        10.0, "a dead worker's messages go to another after this long; live ones renew", 2
    )
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR, in any case")
    log_format: str = _setting("text", "text or json; one line per event either way")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment.

        Raises:
            SettingsError: a SUPERTONIC_ variable is unknown, not a number, or too small.
        """
        environ = os.environ if environ is None else environ
        known = {PREFIX + f.name.upper(): f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                raise SettingsError(
                    f"{name} is not a setting; known are {', '.join(sorted(known))}"
                )
            values[known[name].name] = _parse(name, text, known[name])
        return cls(**values)

    @property
    def address(self) -> str:
        """Where the web listens, as in a URL."""
        return _address(self.host, self.port)

    @property
    def wyoming_address(self) -> str:
        """The same of the server for Home Assistant."""
        return _address(self.wyoming_host or "127.0.0.1", self.wyoming_port)

    @property
    def queues_are_in_redis(self) -> bool:
        """Whether the chunks' queues are in the same Redis as jobs and events."""
        return self.broker_url in ("", self.redis_url)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(name: str, text: str, spec: Any) -> Any:
    if spec.type is str:
        return text.upper() if spec.name == "log_level" else text
    if not text.strip():
        return spec.default  # `NAME=` in a file is how one leaves a setting alone
    try:
        value = spec.type(text)
    except ValueError:
        kind = "a whole number" if spec.type is int else "a number"
        raise SettingsError(f"{name}={text!r}: expected {kind}, such as {spec.default}") from None
    if not math.isfinite(value):
        raise SettingsError(f"{name}={text!r}: expected a finite number, such as {spec.default}")
    least, most = spec.metadata["least"], spec.metadata["most"]
    if most is not None and value > most:
        raise SettingsError(f"{name}={text!r}: expected at most {most}")
    # Written so that NaN, which compares false with everything, is refused too.
    if least is not None and not value >= least:
        raise SettingsError(f"{name}={text!r}: expected at least {least}")
    return value
