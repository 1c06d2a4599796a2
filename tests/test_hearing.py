"""A subscription that is kept up, and its end."""

import threading
from pathlib import Path

import pytest
import redis

from app.bell import Bell
from tasks.events import connect
from tasks.hearing import Hearing
from tests.stack import Stack, wait_for


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_what_is_closed_hears_nothing_more_and_leaves_no_thread(client: "redis.Redis") -> None:
    heard: list[bytes] = []
    hearing = Hearing(client, "an ear", ["news"], lambda channel, content: heard.append(content))
    wait_for(lambda: client.publish("news", "one") > 0)
    wait_for(lambda: heard == [b"one"])
    hearing.close()
    assert "an ear" not in threads()
    assert client.publish("news", "two") == 0 and heard == [b"one"]


def test_a_bell_is_closed_also_while_its_redis_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = Stack(tmp_path)
    with connect(stack.redis_url) as client:
        bell = Bell(client)
        wait_for(lambda: "bell lost Redis" in caplog.text)
        bell.close()
    assert "bell" not in threads()
