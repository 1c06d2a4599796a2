"""Ready-made chunk messages are Celery's own: either side takes what the other writes."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection

from benchmarks.null_engine import SAMPLE_RATE
from tasks.celery import SYNTHESIZE, app
from tasks.envelopes import envelopes, shown
from tasks.messages import Chunk, Urgency
from tests.examples import a_chunk, a_job, some_pieces
from tests.stack import Stack, wait_for

# An ordinary Celery worker on the ordinary transport that writes down what it was told.
STOCK_WORKER = """
from celery import Celery
app = Celery(broker={url!r})
app.conf.update(task_default_queue="high", broker_connection_retry_on_startup=True)

@app.task(name={name!r}, bind=True)
def synthesize_chunk(self, chunk):
    with open({path!r}, "a") as file:
        print(self.request.id, chunk["job_id"], chunk["index"], chunk["text"], file=file)
"""


@pytest.fixture
def redis_only(stack: Stack) -> Iterator[Stack]:
    stack.start_redis()
    yield stack


def sent_by_celery(chunk: Chunk, expires_s: float) -> dict:
    with Connection("memory://") as connection, connection.channel() as channel:
        channel.queue_declare("high")
        app.send_task(
            SYNTHESIZE,
            args=(chunk.to_json(),),
            queue="high",
            connection=connection,
            ignore_result=True,
            expires=expires_s,
            retry=False,
            argsrepr=shown(chunk),
            kwargsrepr="{}",
        )
        return channel._get("high")


def test_an_envelope_differs_from_celerys_own_in_nothing_but_ids_and_times() -> None:
    chunk = a_chunk(index=3, text="Ça va — 안녕?")
    ((queue, text),) = envelopes(app, SYNTHESIZE, [chunk], 60.0)
    ours, theirs = json.loads(text), sent_by_celery(chunk, 60.0)
    assert queue == "high"
    # The age of a message in the broker is not looked at by anybody on Redis.
    assert theirs["properties"].pop("expiration") == "60000"
    ids = {"id", "root_id", "correlation_id", "delivery_tag", "expires"}
    for part in ("headers", "properties"):
        assert ours[part].keys() == theirs[part].keys()
        changed = {name for name in ours[part] if ours[part][name] != theirs[part][name]}
        assert changed <= ids
        del ours[part], theirs[part]
    # JSON as well, but not space for space.
    for message in (ours, theirs):
        message["body"] = json.loads(base64.b64decode(message["body"]))
    assert ours == theirs


def test_every_envelope_has_its_own_identity() -> None:
    chunks = [a_chunk(index=index) for index in range(3)]
    made = envelopes(app, SYNTHESIZE, chunks, 60.0) + envelopes(app, SYNTHESIZE, chunks, 60.0)
    tags = [json.loads(text)["properties"]["delivery_tag"] for _, text in made]
    assert len(set(tags)) == 6


def test_a_message_is_good_for_some_time_after_it_was_due() -> None:
    """The end of a long text is due in an hour, and may not be dropped before."""
    now = time.time()
    chunks = [a_chunk(index=0, due=now), a_chunk(index=1, due=now + 3000)]
    ends = [
        datetime.fromisoformat(json.loads(text)["headers"]["expires"]).timestamp() - now
        for _, text in envelopes(app, SYNTHESIZE, chunks, 60.0)
    ]
    assert 60 - 1e-3 <= ends[0] <= 60 + time.time() - now, "counted from when it is sent"
    assert ends[1] == pytest.approx(3060, abs=1e-3)


def test_a_stock_worker_takes_our_envelopes(redis_only: Stack, tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    program = STOCK_WORKER.format(url=redis_only.redis_url, name=SYNTHESIZE, path=str(told))
    (tmp_path / "stock_worker.py").write_text(program)
    now = time.time()
    chunks = [a_chunk("job", index, text=f"Ça {index}", due=now) for index in range(3)]
    for queue, text in envelopes(app, SYNTHESIZE, chunks, 60.0):
        redis_only.redis.lpush(queue, text)
    command = [sys.executable, "-m", "celery", "-A", "stock_worker", "worker", "-P", "solo"]
    worker = subprocess.Popen(
        command, cwd=tmp_path, env=redis_only.env | {"PYTHONPATH": str(tmp_path)}
    )
    try:
        lines = wait_for(lambda: told.exists() and told.read_text().count("\n") == 3, 60) and (
            told.read_text().splitlines()
        )
        wait_for(lambda: redis_only.redis.hlen("unacked") == 0)
    finally:
        worker.terminate()
        worker.wait(60)
    assert [line.split()[1:] for line in lines] == [["job", str(n), "Ça", str(n)] for n in range(3)]


def test_our_worker_takes_what_stock_celery_sends(stack: Stack) -> None:
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    from tasks.events import EventStore

    store = EventStore(stack.redis)
    store.create(replace(a_job("stock", 2), sample_rate=SAMPLE_RATE), some_pieces(2), 60)
    sender = Celery(broker=stack.redis_url)
    for index, urgency in enumerate((Urgency.HIGH, Urgency.NORMAL)):
        chunk = a_chunk("stock", index, count=2, urgency=urgency, due=time.time())
        sender.send_task(SYNTHESIZE, args=[chunk.to_json()], queue=urgency.value)
    wait_for(lambda: [e.type for e in store.events("stock")][-1:] == ["done"])
    wait_for(lambda: stack.redis.hlen("unacked") == 0)
    sender.close()
