"""Flower sees the workers and every chunk: received, started, succeeded, failed, revoked.

Redis is behind a Unix socket here, as with ``make run``.
"""

import sys

import requests

from tests.stack import Stack, free_port, wait_for


def test_flower_lists_the_worker_and_the_chunk_tasks(stack: Stack) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # Its API answers without a password only when asked to; compose puts one in front.
    stack.env |= {"FLOWER_UNAUTHENTICATED_API": "true"}
    at = f"{stack.folder}/redis.sock"
    stack.env["SUPERTONIC_REDIS_URL"] = f"unix://{at}?db=0"
    stack.start_redis("--unixsocket", at, "--save", "")
    stack.start_web()
    stack.start_worker(app="tests.faulty_worker")
    stack.start("flower", sys.executable, "-m", "celery", "-A", "tasks", "flower", f"--port={port}")
    stack.wait_ready()
    # Flower switches task events on when it starts; until that is heard, nothing is recorded.
    wait_for(lambda: "worker@test" in requests.get(f"{address}/api/workers?refresh=1").text, 60)

    def recorded() -> list[dict]:
        stack.post("/synthesize", {"text": "Can you see me?"})
        tasks = list(requests.get(f"{address}/api/tasks").json().values())
        return tasks if any(task["name"] for task in tasks) else []

    tasks = wait_for(recorded, 60, "tasks in Flower")
    # Of a task that was received before Flower listened, it knows no name.
    assert {task["name"] for task in tasks} - {None} == {"tasks.synthesize_chunk"}

    assert stack.post("/synthesize", {"text": "This is poison."}).status_code == 500

    def whole(state: str) -> dict | None:
        tasks = requests.get(f"{address}/api/tasks?state={state}").json().values()
        return next((task for task in tasks if task["received"] and task["started"]), None)

    spoken = wait_for(lambda: whole("SUCCESS"), 60, "a task that succeeded")
    assert spoken["received"] <= spoken["started"] <= spoken["succeeded"]
    assert spoken["worker"] == "worker@test"
    failed = wait_for(lambda: whole("FAILURE"), 60, "a task that failed")
    assert failed["received"] <= failed["started"] <= failed["failed"]

    # How long the queues are it has to ask Redis itself.
    queues = requests.get(f"{address}/api/queues/length").json()["active_queues"]
    assert {one["name"] for one in queues} >= {"high", "normal", "low"}

    # While the worker is busy with the first one, the others wait there.
    paragraphs = ["A nap first.", *(f"Paragraph {n}." for n in range(300))]
    with stack.stream({"text": "\n\n".join(paragraphs)}):
        pass  # and gone
    revoked = wait_for(
        lambda: requests.get(f"{address}/api/tasks?state=REVOKED").json(), 60, "revoked tasks"
    )
    assert {task["worker"] for task in revoked.values()} == {"worker@test"}
