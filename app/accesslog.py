"""gunicorn's own lines and one line per request, in the shape all processes log in.

A request's line has its path without the query, which may hold a key, and the job it was about.
"""

import logging
import re
from datetime import timedelta
from typing import Any

from gunicorn import glogging

from tasks.logs import facts, set_up
from tasks.settings import Settings

logger = logging.getLogger("app.access")

_JOB = re.compile(r"^/jobs/(\w+)")
# Probes and scrapes come every few seconds and say nothing when they go well.
_QUIET = {"/livez", "/readyz", "/metrics"}


class Logger(glogging.Logger):
    """What ``logger_class`` in gunicorn's configuration names."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        set_up(Settings.from_env(), "web")
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)
        self._access_log_enabled = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        path = environ.get("PATH_INFO", "")
        status = int(str(resp.status).split(None, 1)[0])
        level = logging.DEBUG if path in _QUIET and status < 400 else logging.INFO
        if not logger.isEnabledFor(level):
            return
        named = _JOB.match(path)
        headers = {name.lower(): value for name, value in resp.headers}
        job_id = headers.get("x-job-id") or (named[1] if named else None)
        about = {"job_id": job_id} if job_id else {}
        logger.log(
            level,
            "request",
            extra=facts(
                method=environ.get("REQUEST_METHOD"),
                path=path,
                status=status,
                bytes=getattr(resp, "sent", None),
                seconds=request_time.total_seconds(),
                remote=environ.get("REMOTE_ADDR"),
                **about,
            ),
        )
