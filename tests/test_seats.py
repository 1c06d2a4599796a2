"""Listeners who hold all threads that they may have leave the rest of the service working."""

from contextlib import ExitStack

from tests.stack import Stack, wait_for

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def test_listeners_leave_threads_for_everybody_else(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_WEB_PROCESSES": "1", "SUPERTONIC_WEB_THREADS": "8"}
    stack.start_all()
    job = stack.post("/synthesize/long", {"text": "Hello there. " * 200}).json()["links"]["self"]
    assert stack.post(f"{job}/pause").json()["state"] == "paused"
    with ExitStack() as listening:
        for _ in range(4):
            events = listening.enter_context(stack.get(f"{job}/events", stream=True))
            assert events.status_code == 200
        for path, body in (
            ("/synthesize", {"text": "Me too."}),
            ("/synthesize/stream", {"text": "Me too."}),
            ("/synthesize/long?wait=true", {"text": "Me too."}),
            ("/v1/audio/speech", {"input": "Me too."}),
        ):
            refused = stack.post(path, body)
            assert refused.status_code == 503, path
            assert refused.headers["Retry-After"] == "2"
            assert "SUPERTONIC_WEB_THREADS" in refused.text
        assert stack.get("/ws/synthesize", headers=HANDSHAKE).status_code == 503
        assert stack.get("/livez").status_code == stack.get("/readyz").status_code == 200
        assert stack.post("/synthesize/long", {"text": "Later."}).status_code == 202
    wait_for(lambda: stack.post("/synthesize", {"text": "Now."}).status_code == 200, 10)
