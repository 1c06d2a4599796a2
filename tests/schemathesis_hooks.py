"""Loaded by schemathesis: what JSON Schema cannot say about good requests."""

import secrets
from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """A text has to hold something speakable, and this server has no secret for webhooks."""
    if isinstance(body, dict):
        for name in ("text", "input"):
            if isinstance(body.get(name), str) and body[name]:
                body[name] = "Hi. " + body[name]
        if isinstance(body.get("webhook_url"), str):
            del body["webhook_url"]
    return body


@schemathesis.hook
def map_headers(context: Any, headers: Any) -> Any:
    """A key stands for one request."""
    if headers and "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = secrets.token_hex(8)
    return headers
