"""Loaded by schemathesis. What JSON Schema cannot say: a text has to hold something speakable."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    for name in ("text", "input"):
        if isinstance(body, dict) and isinstance(body.get(name), str) and body[name]:
            body[name] = "Hi. " + body[name]
    return body
