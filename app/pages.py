"""The page people listen on."""

from flask import Blueprint, Response, make_response, render_template

pages = Blueprint("pages", __name__)

# Everything the page needs comes from this server; nothing inline, nothing from elsewhere.
_POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)


@pages.get("/ui")
def ui() -> Response:
    response = make_response(render_template("index.html"))
    response.headers["Content-Security-Policy"] = _POLICY
    return response
