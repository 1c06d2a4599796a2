"""The web, impatient with silent clients: ``gunicorn 'tests.impatient_web:create_app()'``."""

import app.websocket
from app import create_app

__all__ = ["create_app"]

app.websocket.IDLE_S = 1.0
