"""Health check of one container: ends with 0 when its service is well, else says why with 1.

`celery inspect` would start a whole command line each time; these checks cost a fraction of it.
"""

import socket
import sys
import urllib.request


def web() -> bool:
    return _answers("http://127.0.0.1:8002/livez")


def wyoming() -> bool:
    with socket.create_connection(("127.0.0.1", 10200), timeout=4) as server:
        server.sendall(b'{"type": "ping"}\n')
        return b"pong" in server.recv(100)


def flower() -> bool:
    return _answers("http://127.0.0.1:5555/healthcheck")


def worker() -> bool:
    """The worker renews its record every half second, and the record lasts for five."""
    from tasks.events import connect
    from tasks.settings import Settings
    from tasks.workers import WorkerRecords

    names = [
        record.name for record in WorkerRecords(connect(Settings.from_env().redis_url)).living()
    ]
    return any(name.endswith("@" + socket.gethostname()) for name in names)


def files() -> bool:
    from tasks.files import app

    return bool(app.control.ping(destination=[f"files@{socket.gethostname()}"], limit=1, timeout=5))


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=4) as response:
        return response.status == 200


CHECKS = {"web": web, "wyoming": wyoming, "flower": flower, "worker": worker, "files": files}

if __name__ == "__main__":
    service = sys.argv[1]
    if not CHECKS[service]():
        sys.exit(f"{service} does not answer")
