"""The queues that a speech worker consumes, each on a channel of its own, and the leases on what
it holds of them. All of it belongs to the hub thread.
"""

import logging
import time
from typing import Any

from kombu import Consumer

from tasks.transport import Channel, QoS, Transport

logger = logging.getLogger(__name__)

# Each queue has a channel and a credit of its own, so first chunks never wait for NORMAL credit,
# and long jobs are not starved by it: the order among them all is decided in tasks/batching.py.
# NORMAL is the worker's own consumer, its credit is in celeryconfig.py.
LANES = {"high": 256, "low": 32}


class Lanes:
    """The worker's own consumer, and the lanes beside it, which come and go with the connection."""

    def __init__(self, consumer: Any) -> None:
        """``consumer`` is Celery's, whose ``task_consumer`` is that of NORMAL."""
        self._consumer = consumer
        self._beside: list[Consumer] = []
        # The normal consumer leaves these to their own lanes and FILES to the files worker.
        consumer.app.amqp.queues.deselect([*LANES, "files"])

    @property
    def consumers(self) -> list[Consumer]:
        return [self._consumer.task_consumer, *self._beside]

    def open(self) -> None:
        consumer = self._consumer
        for name, credit in LANES.items():
            channel = consumer.connection.channel()
            channel.basic_qos(0, credit, False)
            lane = Consumer(
                channel,
                queues=[consumer.app.amqp.queues[name]],
                on_message=consumer.create_task_handler(),
                on_decode_error=consumer.on_decode_error,
                accept=consumer.app.conf.accept_content,
            )
            lane.consume()
            self._beside.append(lane)
            if name == "high" and isinstance(channel, Channel):
                # No later chunk comes to hand before the first chunk of its own request.
                consumer.task_consumer.channel.ahead = channel

    def close(self) -> None:
        lanes, self._beside = self._beside, []
        for lane in lanes:
            try:
                lane.cancel()
                lane.channel.close()
            except self._consumer.connection_errors as error:
                logger.info("closing a lane: %s", error)

    # -- leases ------------------------------------------------------------------------------

    def renewal_s(self) -> float | None:
        """How often ``renew`` must be called; None where that happens by itself while the hub runs,
        as on the claim channel.
        """
        transport = self._consumer.connection.transport
        if transport.driver_type != "redis" or isinstance(transport, Transport):
            return None
        visibility_s: float = self._consumer.app.conf.broker_transport_options["visibility_timeout"]
        return visibility_s / 4

    def renew(self) -> None:
        """Tell Redis that everything held is in good hands, however long it waits here."""
        if self._consumer.connection.transport.driver_type != "redis":
            return
        for channel in self._channels():
            try:
                if isinstance(channel.qos, QoS):
                    channel.qos.renew()
                elif tags := list(channel.qos._delivered):
                    with channel.conn_or_acquire() as client:
                        # XX: a tag that was acknowledged meanwhile must not come back.
                        leases = dict.fromkeys(tags, time.time())
                        client.zadd(channel.unacked_index_key, leases, xx=True)
            except self._consumer.connection_errors as error:
                logger.warning("could not renew leases: %s", error)

    def flush(self) -> None:
        """Have the claim channels tell Redis now: there is no next poll that would."""
        for channel in self._channels():
            if isinstance(channel.qos, QoS):
                channel.flush()

    def _channels(self) -> list[Any]:
        return [one.channel for one in self.consumers if one and one.channel]
