"""What the queries of requests say, checked. All raise Problem: 422 for what cannot be meant."""

import base64
import binascii
import math
import re
from collections.abc import Iterable

from flask import request

from app.errors import field_problem

# A chunk, and samples of the one after it: 3, or 3+24576.
EVENT_ID = r"[0-9]{1,12}(\+[0-9]{1,12})?"


def flag(name: str, default: bool = False) -> bool:
    text = request.args.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise field_problem(name, text, "must be true or false")
    return text.lower() in ("true", "1")


def number(name: str, default: int, most: int) -> int:
    """A whole number from 1 to ``most``."""
    text = request.args.get(name)
    if text is None:
        return default
    # Python refuses to read thousands of digits.
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not 1 <= int(text) <= most:
        raise field_problem(name, text, f"must be a whole number from 1 to {most}")
    return int(text)


def choice(name: str, allowed: Iterable[str], default: str = "") -> str:
    """One of these."""
    text = request.args.get(name)
    if text is not None and text not in list(allowed):
        raise field_problem(name, text, f"must be one of {', '.join(allowed)}")
    return default if text is None else text


def cursor() -> tuple[float, str] | None:
    """Where in the list to begin: behind this time and job."""
    text = request.args.get("cursor", "")
    if text == "":
        return None
    try:
        score, _, job_id = base64.urlsafe_b64decode(text).decode("ascii").partition(" ")
        if not math.isfinite(float(score)):
            raise ValueError(score)
        return float(score), job_id
    except (ValueError, binascii.Error):
        raise field_problem("cursor", text, "must be the next_cursor of an answer") from None


def cursor_text(key: tuple[float, str] | None) -> str | None:
    if key is None:
        return None
    return base64.urlsafe_b64encode(f"{key[0]!r} {key[1]}".encode()).decode()


def last_event_id() -> tuple[int, int]:
    """The last event the client has seen, -1 for none, and samples of the chunk after it. The
    header counts more than the query.
    """
    seen, start = "-1", "0"
    for name, values in (("last_event_id", request.args), ("Last-Event-ID", request.headers)):
        text = values.get(name)
        if text is None:
            continue
        # Longer than any real one, and Python refuses to read thousands of digits.
        if not re.fullmatch(EVENT_ID, text):
            raise field_problem(name, text, "must be the id of an event, such as 3 or 3+24576")
        seen, _, start = text.partition("+")
    return int(seen), int(start or 0)
