"""The web, impatient with silent clients: ``gunicorn 'tests.impatient_web:create_app()'``."""

import app.websocket
from app import create_app

__all__ = ["create_app"]

IDLE_S = 3.0
app.websocket.IDLE_S = IDLE_S
