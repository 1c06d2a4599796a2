"""Messages that a worker cannot use: each becomes a dead letter, and the next one comes."""

import json
import logging
from collections.abc import Callable
from typing import Any

import redis

from tasks.dead_letters import bury

logger = logging.getLogger(__name__)

Refuse = Callable[[str, Any], None]


def guard(consumer: Any, client: "redis.Redis") -> Refuse:
    """Refuse every message that breaks something on its way to a strategy of this Celery consumer,
    which logs and forgets some of them, and is ended by others. Returns what refuses one: it takes
    the reason and the message.
    """

    def refuse(reason: str, message: Any) -> None:
        queue = (message.delivery_info or {}).get("routing_key", "")
        logger.error("a message in %s cannot be used (%.200s), buried", queue, reason)
        content = json.dumps({"headers": message.headers, "body": message.body}, default=str)
        bury(client, str(queue), reason, content)
        message.ack_log_error(logger, consumer.connection_errors)

    make_handler = consumer.create_task_handler
    # Not all of Celery's: on Redis every KeyError counts as a connection error.
    lost = tuple(
        error
        for error in consumer.connection_errors + consumer.channel_errors
        if not issubclass(KeyError, error)
    )

    def create_task_handler() -> Callable[[Any], None]:
        handle = make_handler()

        def on_message(message: Any) -> None:
            try:
                handle(message)
            except lost:
                raise
            except Exception as error:
                refuse(f"{type(error).__name__}: {error}", message)

        return on_message

    consumer.create_task_handler = create_task_handler
    consumer.on_unknown_message = lambda body, message: refuse("not a task", message)
    consumer.on_unknown_task = lambda body, message, error: refuse(f"no task {error}", message)
    consumer.on_invalid_task = lambda body, message, error: refuse(str(error), message)
    consumer.on_decode_error = lambda message, error: refuse(str(error), message)
    return refuse
