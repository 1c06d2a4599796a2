"""The processes of the service as supervisord runs them, and their logs on the terminal.

supervisord, because a killed worker has to come back while the rest goes on; honcho and foreman
read the same Procfile, but they stop everything as soon as one process ends.
"""

import ctypes
import http.client
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

STOP_WAIT_S = 60  # patience before SIGKILL: longer than the longest batch

# Only supervisord's user reaches the socket: the directory it lies in is private.
GENERAL = """\
[supervisord]
nodaemon=true
silent=true
directory={root}
logfile={run_dir}/supervisord.log
pidfile={private}/supervisord.pid
{user}
[unix_http_server]
file={private}/supervisor.sock
[supervisorctl]
serverurl=unix://{private}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# startretries: each failed start waits a second longer than the one before, so a hundred last more
# than an hour. killasgroup: SIGTERM goes to the process, which stops its own children; SIGKILL has
# to reach the children too.
PROGRAM = """
[program:{name}]
command={command}
priority={priority}
autorestart=true
startsecs=1
startretries=100
stopwaitsecs={stop_wait_s}
killasgroup=true
redirect_stderr=true
stdout_logfile={run_dir}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


@dataclass(frozen=True)
class ProcessState:
    name: str
    state: str  # supervisord's word for it: STARTING, RUNNING, BACKOFF, FATAL, …
    started_at: int  # epoch seconds of the latest start, 0 before the first


class Processes:
    """supervisord as a child of this process, with one program per command.

    They start in the order of `commands`; `stop` goes the other way round, each waiting for the
    one before: the web lets go of its clients, the workers finish their batch, Redis is last.
    """

    def __init__(
        self,
        commands: dict[str, str],
        root: Path,
        run_dir: Path,
        private: str,
        env: dict[str, str],
    ) -> None:
        """``private`` is a directory of a short name that nobody else may enter."""
        self._private = private
        config = run_dir / "supervisord.conf"
        config.write_text(_config(commands, root, run_dir, private))
        self.logs = {name: Log(name, run_dir / f"{name}.log") for name in commands}
        self._supervisord = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            env=env,
            start_new_session=True,  # Ctrl-C reaches our process only, which stops all in order
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )

    def states(self) -> list[ProcessState]:
        """How every process is; empty while supervisord is not up."""
        url = f"unix://{self._private}/supervisor.sock"
        transport = SupervisorTransport(None, None, url)
        try:
            with ServerProxy("http://supervisor", transport=transport) as server:
                infos: Any = server.supervisor.getAllProcessInfo()
        except (OSError, http.client.HTTPException, Fault):
            return []
        return [ProcessState(info["name"], info["statename"], info["start"]) for info in infos]

    def are_supervised(self) -> bool:
        return self._supervisord.poll() is None

    def show_logs(self) -> None:
        for log in self.logs.values():
            log.show_new_lines()

    def stop(self) -> None:
        """Stop everything in order; returns when nothing is left."""
        self._supervisord.terminate()
        while True:
            try:
                self._supervisord.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                self.show_logs()
        self.show_logs()


class Log:
    """One process's log file, shown on the terminal line by line behind the process's name."""

    def __init__(self, name: str, path: Path) -> None:
        path.touch()
        self._name, self._path, self._unfinished = name, path, b""
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)  # what an earlier run wrote is not news
        self.last_line = "it logged nothing"

    def show_new_lines(self) -> None:
        self._show_what_is_there()
        with suppress(FileNotFoundError):  # supervisord has renamed it and not begun a new one
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                self._show_what_is_there()  # what was written just before the renaming
                self._file.close()
                self._file = self._path.open("rb")

    def _show_what_is_there(self) -> None:
        *lines, self._unfinished = (self._unfinished + self._file.read()).split(b"\n")
        for line in filter(None, (raw.decode(errors="replace").rstrip() for raw in lines)):
            self.last_line = line
            print(f"{self._name:<6} | {line}", flush=True)


def _config(commands: dict[str, str], root: Path, run_dir: Path, private: str) -> str:
    user = "user=root" if os.geteuid() == 0 else ""  # said, or supervisord warns about root
    # supervisord replaces what stands behind a percent sign.
    paths = {"root": root, "run_dir": run_dir, "private": private}
    escaped = {name: str(path).replace("%", "%%") for name, path in paths.items()}
    text = GENERAL.format(**escaped, user=user)
    for priority, (name, command) in enumerate(commands.items(), start=1):
        text += PROGRAM.format(
            name=name,
            command=shlex.join(["/bin/sh", "-c", command]).replace("%", "%%"),
            priority=priority,
            stop_wait_s=STOP_WAIT_S,
            run_dir=escaped["run_dir"].replace("%", "%%"),  # it looks twice at log files
        )
    return text


def end_with_parent() -> None:
    """Linux: SIGTERM to the child that runs this, should we be killed with SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
