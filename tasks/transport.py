"""The claim channel: Celery's Redis transport with one round trip per batch.

Kombu's own needs three round trips per message: pop it, note that it is held, note that it is done.
Between the first two a message is nowhere but in a socket, and a worker killed there loses it.
Here one script does all of it for many messages: it removes what is done, and moves up to a
worker's credit from the queue to what is held. So a message is always in exactly one place. To
learn that there is something, a blocking BLMOVE moves the last message to where it was already.

Keys and formats are kombu's, so workers on either transport can share a Redis and take over each
other's messages. Channels that consume several queues, or without acknowledgement, such as those
of remote control, stay as they were.
"""

import logging
import uuid
from time import monotonic
from typing import Any

import orjson
import redis
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from tasks.dead_letters import bury

logger = logging.getLogger(__name__)

# Most messages of one claim on a channel without a limit of its own.
MAX_CLAIM = 100
# Most messages that one sweep returns.
MAX_RESTORE = 1000
# Redis full: it refuses to be looked at, so look again after this long.
FULL_PAUSE_S = 0.5

# KEYS: index of leases, held messages, queue. ARGV: credit, name of this claim, tags that are done.
# The lease is by the clock of Redis: the workers' own may differ.
_CLAIM = """
for i = 3, #ARGV, 1000 do
  local last = math.min(i + 999, #ARGV)
  redis.call('ZREM', KEYS[1], unpack(ARGV, i, last))
  redis.call('HDEL', KEYS[2], unpack(ARGV, i, last))
end
local credit = tonumber(ARGV[1])
local messages = credit > 0 and redis.call('RPOP', KEYS[3], credit) or {}
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i, message in ipairs(messages) do
  redis.call('ZADD', KEYS[1], now, ARGV[2] .. i)
  redis.call('HSET', KEYS[2], ARGV[2] .. i, '[' .. message .. ', "", "' .. KEYS[3] .. '"]')
end
return messages
"""

# Renew the leases of the tags in ARGV. XX: what was done meanwhile must not come back. A full Redis
# refuses a script that begins by adding something, so it begins by removing nothing.
_RENEW = """
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', now, tag) end
"""

# Return messages to the head of their queues: those with the tags in ARGV from 3 on, or, if there
# are none, at most ARGV[2] whose lease was not renewed for ARGV[1] seconds. The message itself is
# not parsed: it may be the very one that nobody can parse. Returns the tags of those that were sent
# through an exchange; where they belong only kombu knows.
_RESTORE = """
local tags = {}
for i = 3, #ARGV do tags[#tags + 1] = ARGV[i] end
if #tags == 0 then
  local time = redis.call('TIME')
  local before = time[1] + time[2] / 1000000 - ARGV[1]
  tags = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])
end
local left = {}
for i = #tags, 1, -1 do
  local held = redis.call('HGET', KEYS[2], tags[i])
  local message, queue = string.match(held or '', '^%[(.*), ?"", ?"([^"]*)"%]$')
  if held and not message then
    left[#left + 1] = tags[i]
  else
    redis.call('ZREM', KEYS[1], tags[i])
    redis.call('HDEL', KEYS[2], tags[i])
    if message then redis.call('RPUSH', queue, message) end
  end
end
return left
"""


class QoS(stock.QoS):
    """What a channel holds. What is done with a claimed message waits for the next claim."""

    def __init__(self, channel: "Channel", prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self.is_claiming = False
        self.done: list[str] = []
        self.returned: list[str] = []

    def append(self, message: Any, delivery_tag: str) -> None:
        if self.is_claiming:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self.done.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        (self.returned if requeue else self.done).append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    @property
    def credit(self) -> int:
        room = self.prefetch_count - (len(self._delivered) - len(self._dirty))
        return room if self.prefetch_count else MAX_CLAIM

    def renew(self) -> None:
        """Tell Redis that everything held is in good hands."""
        self._flush()
        if self._delivered:
            keys = [self.unacked_index_key]
            self.channel.scripts.renew(keys=keys, args=list(self._delivered))

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Kombu's timer: keep what this process holds, return what dead ones held."""
        for channel in self.channel.connection.channels:
            channel.qos.renew()
        self._restore([])

    def restore_unacked(self, client: Any = None) -> list[Any]:
        """Return everything held; the last thing a channel does."""
        self._flush()
        tags = list(self._delivered)
        if tags:
            self._restore(tags)
        self._delivered.clear()
        return []

    def restore_returned(self) -> None:
        tags, self.returned = self.returned, []
        if tags:
            self._restore(tags)

    def _restore(self, tags: list[str]) -> None:
        keys = [self.unacked_index_key, self.unacked_key]
        args = [self.visibility_timeout, MAX_RESTORE, *tags]
        for tag in self.channel.scripts.restore(keys=keys, args=args):
            self.restore_by_tag(bytes_to_str(tag))


class Scripts:
    """The scripts above, on a client that is made once: kombu makes one for every call."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self.claim = client.register_script(_CLAIM)
        self.renew = client.register_script(_RENEW)
        self.restore = client.register_script(_RESTORE)


class Channel(stock.Channel):
    """A channel that claims, as long as it consumes exactly one queue and acknowledges."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._acknowledging: set[str] = set()
        self._claimed: str | None = None
        self._is_looking = False  # the pending command is our look, not kombu's BRPOP
        self._has_more = False
        self._pause_until = 0.0
        # A channel whose messages are delivered before those that this one claims.
        self.ahead: Channel | None = None
        super().__init__(*args, **kwargs)

    @property
    def scripts(self) -> Scripts:
        if self._scripts is None:
            self._scripts = Scripts(self._create_client())
        return self._scripts

    _scripts: Scripts | None = None

    def _disconnect_pools(self) -> None:
        self._scripts = None
        super()._disconnect_pools()

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if not no_ack:
            self._acknowledging.add(queue)
        reply = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._choose()
        return reply

    def _basic_cancel(self, consumer_tag: str) -> Any:
        reply = super()._basic_cancel(consumer_tag)
        self._choose()
        return reply

    def _choose(self) -> None:
        queues = self.active_queues
        is_claiming = len(queues) == 1 and queues[0] in self._acknowledging
        self._claimed = queues[0] if is_claiming else None

    # -- learning that there is something ----------------------------------------------------

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._claimed is None:
            super()._brpop_start(timeout)
        elif monotonic() > self._pause_until:
            queue, connection = self._claimed, self.client.connection
            self._in_poll, self._brpop_sent_at = connection, monotonic()
            self._is_looking = True
            wait_s = self.brpop_timeout if timeout is None else timeout
            connection.send_command("BLMOVE", queue, queue, "RIGHT", "RIGHT", wait_s)

    def _brpop_read(self, **options: Any) -> Any:
        if not self._is_looking:
            return super()._brpop_read(**options)
        self._is_looking = False
        try:
            reply = self.client.parse_response(self.client.connection, "BLMOVE")
            is_there = reply is not None
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        except redis.OutOfMemoryError:
            # To look counts as writing, to claim does not: it only moves what is there.
            self._pause_until = monotonic() + FULL_PAUSE_S
            is_there = True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if is_there and not self._closing:
            self._claim(self.qos.credit)
        return True

    # -- claiming ----------------------------------------------------------------------------

    def settle(self) -> None:
        """Before every poll: tell Redis what is done, and fetch more if more is known to be there.

        Only then may the poller decide whether to look, or credit would return with nobody looking.
        """
        self.qos.restore_returned()
        if self.qos.done or (self._has_more and self.qos.credit > 0):
            self._claim(self.qos.credit)

    def flush(self) -> None:
        """Tell Redis what is done, and fetch nothing: for a consumer that stops."""
        self.qos.restore_returned()
        if self.qos.done:
            self._claim(0)

    def _claim(self, credit: int) -> None:
        qos, queue = self.qos, self._claimed
        credit = 0 if queue is None else max(0, credit)
        claim = f"{uuid.uuid4().hex}-"
        done, qos.done = qos.done, []
        keys = [self.unacked_index_key, self.unacked_key, queue or ""]
        try:
            messages = self.scripts.claim(keys=keys, args=[credit, claim, *done])
        except Exception:
            qos.done = done + qos.done
            raise
        self._has_more = credit == 0 or len(messages) == credit
        try:
            # After fetching: what was sent with these messages is there by now.
            if messages and self.ahead is not None and not self.ahead.closed:
                self.ahead._claim(self.ahead.qos.credit)
        finally:
            self._deliver_all(messages, claim)

    def _deliver_all(self, messages: list[bytes], claim: str) -> None:
        for number, message in enumerate(messages, start=1):
            self._deliver(message, f"{claim}{number}")

    def _deliver(self, message: bytes, tag: str) -> None:
        """To the consumer; a message that breaks something on its way there is buried."""
        self.qos.is_claiming = True
        try:
            # Kombu's own understands more, such as dates as objects, and takes three times as long.
            payload = (
                loads(bytes_to_str(message)) if b"__type__" in message else orjson.loads(message)
            )
            payload["properties"]["delivery_tag"] = tag
            self.connection._deliver(payload, self._claimed)
        except (redis.RedisError, OSError):
            # Not `connection_errors`: kombu counts every KeyError among them.
            raise
        except Exception as error:
            # Whatever somebody put into the queue, the worker lives and the others' turn comes.
            reason = f"{type(error).__name__}: {error}"
            logger.error("a message in %s cannot be used (%s), buried", self._claimed, reason)
            bury(self.scripts.client, self._claimed or "", reason, message)
            self.qos.ack(tag)
        finally:
            self.qos.is_claiming = False

    def close(self) -> None:
        if not self.closed:
            self._closing = True
            try:
                self.flush()
            except (redis.RedisError, OSError) as error:
                logger.info("what was done is not told, and will be seen to be done: %s", error)
        super().close()


class Poller(stock.MultiChannelPoller):
    def on_poll_start(self) -> None:
        for channel in self._channels:
            channel.settle()
        super().on_poll_start()


class Transport(stock.Transport):
    """What ``redis`` in a broker's URL means here (celeryconfig.py)."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
