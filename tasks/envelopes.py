"""Chunk messages ready for a Redis queue, value for value what Celery itself would put there.

Celery needs a third of a millisecond to send one message. All but id, arguments and expiry is the
same for every chunk, so Celery builds one message per process, into a broker in memory, and each
chunk's envelope is that one with its own values filled in.
"""

import base64
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from celery import Celery
from kombu import Connection

from tasks.messages import Chunk

Envelope = tuple[str, bytes]  # the queue and the message in it


def envelopes(app: Celery, task: str, chunks: Sequence[Chunk], expires_s: float) -> list[Envelope]:
    """One message per chunk for its queue. A worker drops it ``expires_s`` after it was due."""
    template = _template(app, task)
    headers, properties = template["headers"], template["properties"]
    (_, *rest) = orjson.loads(base64.b64decode(template["body"]))
    token, now = uuid.uuid4().hex, time.time()
    made = []
    for number, chunk in enumerate(chunks):
        task_id = f"{token}-{number}"
        queue = chunk.urgency.value
        expires = datetime.fromtimestamp(max(now, chunk.due) + expires_s, UTC).isoformat()
        body = orjson.dumps([[chunk.to_json()], *rest])
        message = template | {
            "body": base64.b64encode(body).decode(),
            "headers": headers
            | {
                "id": task_id,
                "root_id": task_id,
                "expires": expires,
                "argsrepr": shown(chunk),
            },
            "properties": properties
            | {
                "correlation_id": task_id,
                "delivery_tag": task_id,
                "argsrepr": shown(chunk),
                "delivery_info": {"exchange": "", "routing_key": queue},
            },
        }
        made.append((queue, orjson.dumps(message)))
    return made


def shown(chunk: Chunk) -> str:
    """What Flower shows of a chunk: enough to find it, not the user's text."""
    return f"('{chunk.job_id}', {chunk.index})"


@cache
def _template(app: Celery, task: str) -> dict[str, Any]:
    with Connection("memory://") as connection, connection.channel() as channel:
        channel.queue_declare("template")
        app.send_task(
            task,
            args=({},),
            queue="template",
            connection=connection,
            ignore_result=True,
            retry=False,
            argsrepr="",
            kwargsrepr="{}",
        )
        message: dict[str, Any] = channel._get("template")
        return message
