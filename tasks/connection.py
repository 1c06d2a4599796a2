"""How this project's processes find their broker again: soon, however long it was away.

Celery's pauses between attempts grow to half a minute. A broker is one process nearby, and asking
it twice a second costs nothing.
"""

from typing import Any

from celery.app.amqp import AMQP as CeleryAMQP
from kombu import Connection as KombuConnection

FIRST_S, LONGER_S, LONGEST_S = 0.2, 0.2, 2.0


class Connection(KombuConnection):
    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        pauses = {
            "interval_start": FIRST_S,
            "interval_step": LONGER_S,
            "interval_max": LONGEST_S,
        }
        return super().ensure_connection(*args, **(pauses | kwargs))


class AMQP(CeleryAMQP):
    """For Celery's argument of this name."""

    Connection = Connection
