"""One chunk that breaks the engine, or the worker, hurts nobody but its own job."""

import threading

from tests.stack import Stack, wait_for


def speak_all(stack: Stack, texts: list[str]) -> dict[str, int]:
    """Status by text, all sent at once."""
    answers: dict[str, int] = {}

    def speak(text: str) -> None:
        answers[text] = stack.post("/synthesize", {"text": text}).status_code

    threads = [threading.Thread(target=speak, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


def start_faulty(stack: Stack) -> None:
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="tests.faulty_worker")
    stack.wait_ready()


def test_a_poisoned_chunk_fails_its_own_job_with_the_reason(stack: Stack) -> None:
    start_faulty(stack)
    texts = [f"Harmless text number {n}." for n in range(12)]
    answers = speak_all(stack, [*texts, "This is poison."])
    assert answers.pop("This is poison.") == 500
    assert set(answers.values()) == {200}
    answer = stack.post("/synthesize", {"text": "More poison."}).json()
    assert answer["detail"] == "chunk 0: RuntimeError: poisoned"
    wait_for(lambda: stack.redis.hlen("unacked") == 0, 10)


def test_a_chunk_that_kills_workers_is_given_up_after_four(stack: Stack) -> None:
    start_faulty(stack)
    stack.env["SUPERTONIC_VISIBILITY_TIMEOUT_S"] = "2"
    answers: dict[str, int] = {}
    texts = ["This is murder.", *(f"Bystander number {n}." for n in range(4))]
    speaking = threading.Thread(target=lambda: answers.update(speak_all(stack, texts)))
    speaking.start()
    restarts = 0
    while speaking.is_alive():
        if stack.processes["worker"].poll() is not None:
            restarts += 1
            assert restarts <= 5
            stack.start_worker(app="tests.faulty_worker")
        speaking.join(0.1)
    assert restarts == 4
    assert answers.pop("This is murder.") == 500
    assert set(answers.values()) == {200}
    wait_for(lambda: stack.redis.hlen("unacked") == 0, 10)
