"""How every process logs: one line per event on standard error, as text or as JSON.

A line says what happened in a few fixed words and carries the facts beside them: job id, chunk
index, batch id, sizes, seconds. Facts never hold a user's text or a key; whoever has the job id
can look the rest up. Web, workers and gunicorn call ``set_up`` before they say anything.
"""

import json
import logging
import os
import sys
import time
from typing import Any

from tasks.redact import redact
from tasks.settings import PREFIX, Settings, SettingsError

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def facts(**values: Any) -> dict[str, Any]:
    """What a line carries: ``logger.info("job done", extra=facts(job_id=job_id))``."""
    return {"facts": values}


def set_up(settings: Settings, process: str) -> None:
    """Make this process log; ``process`` is its role, such as ``web``. May be called again.

    Raises:
        SettingsError: level or format is none there is.
    """
    check_logging(settings)
    handler = logging.StreamHandler(sys.stderr)
    is_json = settings.log_format == "json"
    handler.setFormatter(JsonLines(process) if is_json else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.captureWarnings(True)
    if is_json and process in ("worker", "files"):
        # Celery writes a few bare lines to standard output when it stops; nothing else does.
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)


def check_logging(settings: Settings) -> None:
    """SettingsError: level or format is none there is."""
    for name, value, known in (
        ("LOG_FORMAT", settings.log_format, ("text", "json")),
        ("LOG_LEVEL", settings.log_level, ("DEBUG", "INFO", "WARNING", "ERROR")),
    ):
        if value not in known:
            raise SettingsError(f"{PREFIX}{name}={value!r}: expected one of {', '.join(known)}")


class TextLines(logging.Formatter):
    """For people: time, level, logger, what happened, facts as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        line = " ".join([line, *(f"{name}={value}" for name, value in _facts(record))])
        # Paths come from strangers: nobody may write a line of his own, or to the terminal.
        return line.translate(_CONTROLS)


class JsonLines(logging.Formatter):
    """For programs: one JSON object per line, whatever is logged; tracebacks are in it too."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname,
            "process": self.process,
            "pid": os.getpid(),
            "logger": record.name,
            "event": redact(record.getMessage()),
            **{n: redact(v) if isinstance(v, str) else v for n, v in _facts(record)},
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=lambda value: redact(str(value)))


def _facts(record: logging.LogRecord) -> list[tuple[str, Any]]:
    values = getattr(record, "facts", {})
    # Six digits: microseconds of a second, and nobody reads the rest.
    return [(n, round(v, 6) if isinstance(v, float) else v) for n, v in values.items()]


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
