"""The claim channel and kombu's own Redis transport: one format, and nothing is ever nowhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu.message import Message

from celeryconfig import _redis_options
from tasks.dead_letters import letters
from tests.stack import Stack, full, wait_for

CLAIM, STOCK = "tasks.transport:Transport", "redis"
# Longer than this process may stand still: it is the one that renews.
LEASE_S = 5


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("redis"))
    stack.start_redis()
    yield stack
    stack.stop_all()


@pytest.fixture
def server(running: Stack) -> Stack:
    running.redis.flushall()
    return running


class Receiver:
    """A consumer of the queue ``high`` and what it got, oldest first."""

    def __init__(self, connection: Connection, credit: int) -> None:
        self.connection = connection
        self.got: list[Message] = []
        channel = connection.channel()
        channel.basic_qos(0, credit, False)
        self.consumer = Consumer(channel, [Queue("high")], on_message=self.got.append)
        self.consumer.consume()

    @property
    def texts(self) -> list[str]:
        return [message.payload for message in self.got]

    def drain(self, at_least: int = 0) -> list[str]:
        """What came so far, once so many are there and nothing more comes at the moment."""
        wait_for(lambda: self._look() or len(self.got) >= at_least, 20)
        for _ in range(6):
            self._look()
        return self.texts

    def _look(self) -> None:
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=0.05)


def connect(server: Stack, transport: str, lease_s: int = LEASE_S) -> Connection:
    options = _redis_options | {"visibility_timeout": lease_s}
    return Connection(server.redis_url, transport=transport, transport_options=options)


@contextmanager
def receiving(
    server: Stack, transport: str, credit: int = 8, lease_s: int = LEASE_S
) -> Iterator[Receiver]:
    with connect(server, transport, lease_s) as connection:
        yield Receiver(connection, credit)


def send(server: Stack, *texts: str) -> None:
    with connect(server, STOCK) as connection:
        producer = Producer(connection.channel(), serializer="json")
        for text in texts:
            producer.publish(text, routing_key="high", retry=False)


def forget(receiver: Receiver) -> None:
    """As if the process had been killed: nothing is given back, nothing is renewed."""
    receiver.consumer.channel.qos._delivered.clear()
    receiver.consumer.channel.qos._dirty.clear()


def test_a_claim_takes_what_the_credit_allows_in_order_of_sending(server: Stack) -> None:
    send(server, *"abcdef")
    with receiving(server, CLAIM, credit=4) as receiver:
        assert receiver.drain(4) == list("abcd")
        assert (server.redis.llen("high"), server.redis.hlen("unacked")) == (2, 4)


def test_what_is_sent_with_it_to_the_lane_ahead_is_delivered_first(server: Stack) -> None:
    with connect(server, CLAIM) as connection:
        got: list[str] = []
        channels = []
        for queue in ("normal", "high"):
            channel = connection.channel()
            channel.basic_qos(0, 8, False)
            hear = Consumer(channel, [Queue(queue)], on_message=lambda m: got.append(m.payload))
            hear.consume()
            channels.append(channel)
        later, first = channels
        later.ahead = first
        send(server, "first chunk")
        server.redis.rpush("normal", server.redis.lindex("high", 0).replace(b"first", b"later"))
        # The later lane is looked at first, as happens when its socket is.
        later._claim(8)
        assert [len(later.qos._delivered), len(first.qos._delivered)] == [1, 1]
        assert got[0] == "first chunk" and len(got) == 2


def test_what_is_done_leaves_with_the_next_claim(server: Stack) -> None:
    send(server, *"abcdef")
    with receiving(server, CLAIM, credit=4) as receiver:
        receiver.drain(4)
        for message in receiver.got[:2]:
            message.ack()
        assert server.redis.hlen("unacked") == 4, "not told yet"
        assert receiver.drain(6) == list("abcdef")
        assert (server.redis.llen("high"), server.redis.hlen("unacked")) == (0, 4)


def test_a_waiting_worker_that_is_killed_has_taken_nothing(server: Stack) -> None:
    """Where kombu loses messages: popped, on their way through a socket that nobody reads."""
    with receiving(server, CLAIM) as receiver:
        channel = receiver.consumer.channel
        wait_for(lambda: receiver.drain() or channel._in_poll, what="it waits in Redis")
        send(server, "a")
        assert server.redis.llen("high") == 1
        assert receiver.drain(1) == ["a"]
        assert server.redis.hlen("unacked") == 1


@pytest.mark.parametrize(("dead", "heir"), [(CLAIM, STOCK), (STOCK, CLAIM), (CLAIM, CLAIM)])
def test_what_a_dead_worker_held_goes_to_another(server: Stack, dead: str, heir: str) -> None:
    send(server, *"abc")
    # Its credit is used up: with a BRPOP under way, kombu's own would swallow what comes back.
    with receiving(server, dead, credit=3, lease_s=1) as victim:
        assert victim.drain(3) == list("abc")
        with receiving(server, heir, lease_s=1) as receiver:
            # Only the second one is polled from here on, so nothing renews what the first holds.
            assert sorted(receiver.drain(3)) == list("abc")
        forget(victim)


def test_what_a_living_worker_holds_stays_its_own(server: Stack) -> None:
    send(server, *"abc")
    with receiving(server, CLAIM) as holder, receiving(server, CLAIM) as other:
        holder.drain(3)
        give_up_at = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < give_up_at:
            holder.drain()
            assert other.drain() == []
        assert holder.texts == list("abc")


def test_a_stopping_worker_returns_what_it_holds_to_the_head_of_the_queue(server: Stack) -> None:
    send(server, *"abcdef")
    with receiving(server, CLAIM, credit=3) as receiver:
        receiver.drain(3)
        receiver.got[0].ack()
    assert server.redis.hlen("unacked") == 0
    with receiving(server, STOCK) as receiver:
        assert receiver.drain(5) == list("bcdef")


def test_a_stopping_worker_returns_however_much_it_holds(server: Stack) -> None:
    send(server, "a")
    server.redis.lpush("high", *[server.redis.lindex("high", 0)] * 8999)
    with receiving(server, CLAIM, credit=10_000) as receiver:
        assert len(receiver.drain(9000)) == 9000
    assert (server.redis.llen("high"), server.redis.hlen("unacked")) == (9000, 0)


def test_a_returned_message_comes_back(server: Stack) -> None:
    send(server, "a")
    with receiving(server, CLAIM) as receiver:
        receiver.drain(1)
        receiver.got[0].reject(requeue=True)
        assert receiver.drain(2) == ["a", "a"]


@pytest.mark.parametrize(
    "broken", ["", "no JSON", "[]", "null", "{}", '{"properties": 5}', "\xff" * 9]
)
def test_a_broken_message_is_buried_and_the_next_one_comes(server: Stack, broken: str) -> None:
    server.redis.lpush("high", broken.encode("latin-1"))
    send(server, "a")
    with receiving(server, CLAIM) as receiver:
        assert receiver.drain(1) == ["a"]
        receiver.got[0].ack()
        wait_for(lambda: receiver.drain() and server.redis.hlen("unacked") == 0)
        assert server.redis.llen("high") == 0
    (letter,) = letters(server.redis)
    assert letter["queue"] == "high" and letter["reason"]


def test_a_full_redis_is_waited_out(server: Stack) -> None:
    with receiving(server, CLAIM) as receiver:
        receiver.drain()
        send(server, "a")
        with full(server.redis):
            # What is there is only moved, so it comes; and the waiting that follows is no spinning.
            assert receiver.drain(1) == ["a"]
            receiver.got[0].ack()
            wait_for(lambda: receiver.drain() and server.redis.hlen("unacked") == 0)
        send(server, "b")
        assert receiver.drain(2) == ["a", "b"]
