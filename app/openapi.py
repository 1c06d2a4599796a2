"""``GET /openapi.json``: the API as OpenAPI 3.1, made from the routes and the models.

Addresses and methods come from Flask's own table, bodies and answers from ``app/schemas.py`` and
``app/answers.py``, what remains from ``app/operations.py``.
"""

import re
from typing import Any

import redis
from flask import Blueprint, Flask, Response, current_app, jsonify
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app import answers
from app.access import PUBLIC, keyring
from app.errors import ENVELOPED_AS_400, TITLES
from app.fields import ALLOWED
from app.jobs import speech
from app.offer import languages_of, voices_of
from app.openai_api import VOICE_NAMES
from app.operations import JSON, OPERATIONS, SSE, Good, Operation, Parameter
from app.schemas import Body
from app.uploads import EPUB, FORM, TEXTS
from app.version import service_version
from supertonic.voices import MOST_MIXED

openapi = Blueprint("openapi", __name__)

PROBLEM = "application/problem+json"
AUTOMATIC = {"HEAD", "OPTIONS"}
# A foreign page or host name is refused anywhere; any route reads a body if one is sent.
EVERYWHERE = (400, 403, 413, 414, 415, 431, 500)
HEADERS = {
    "Accept-Ranges": "`bytes`",
    "Content-Range": "which part this is",
    "ETag": "changes when the file does",
    "Idempotent-Replayed": "`true` when the job was there already",
    "Location": "where to look next",
    "Retry-After": "seconds",
    "RateLimit": "what is left, where a rate limit is set",
    "RateLimit-Policy": "the rate limit, where one is set",
    "WWW-Authenticate": "`Bearer`",
    "X-Job-Id": "the job",
    "X-Queue-Wait-Ms": "how long the first sound was expected to wait",
    "X-Request-Id": "the job, or what else to look for in the log",
    "X-Sample-Rate": "samples per second",
    "X-Seed": "the seed that was used",
    "X-Warnings": "what the speaker should know about the text",
}
LIMITED = ("Retry-After", "RateLimit", "RateLimit-Policy")
PROBLEM_HEADERS = {401: ("WWW-Authenticate",), 429: LIMITED, 503: ("Retry-After",)}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "api_key"},
}


@openapi.get("/openapi.json")
def document() -> Response:
    return jsonify(make_document(current_app))


def make_document(app: Flask) -> dict[str, Any]:
    """The whole document for the routes of ``app``, within its application context.

    Raises:
        LookupError: ``app/operations.py`` misses a route, or describes one there is not.
    """
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint != "static"]
    missing = {rule.endpoint for rule in rules} ^ OPERATIONS.keys()
    if missing:
        raise LookupError(f"app/operations.py and the routes differ in {', '.join(missing)}")
    paths: dict[str, dict[str, Any]] = {}
    schemas = _schemas()
    for rule in sorted(rules, key=lambda rule: rule.rule):
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - AUTOMATIC):
            operation = _operation(rule.endpoint, path, OPERATIONS[rule.endpoint])
            paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Supertonic server",
            "version": service_version(),
            "description": "Text to speech: files, streams, long jobs.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": SCHEMES},
    }


def _operation(endpoint: str, path: str, operation: Operation) -> dict[str, Any]:
    is_closed = path not in PUBLIC
    statuses = {*EVERYWHERE, *operation.problems}
    statuses |= {401} if is_closed else set()
    statuses |= {503} if operation.needs_redis else set()
    responses = {str(status): _good(good) for status, good in operation.good.items()}
    if path.startswith("/v1/"):
        statuses -= ENVELOPED_AS_400
    responses |= {str(status): _problem(status, path) for status in sorted(statuses)}
    described: dict[str, Any] = {
        "operationId": endpoint.replace(".", "_"),
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        + [_parameter(parameter) for parameter in operation.parameters],
        "responses": responses,
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        content: dict[str, Any] = {"schema": _ref(operation.body)}
        if operation.example:
            content["example"] = operation.example
        described["requestBody"] = {
            "required": operation.is_body_needed,
            "content": {JSON: content},
        }
        if operation.takes_files:
            fields = _beside_files(operation.body)
            described["requestBody"]["content"] |= _files(fields)
            described["parameters"] += [
                {"name": name, "in": "query", "schema": schema} for name, schema in fields.items()
            ]
    if is_closed:
        ways: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]
        described["security"] = ways if keyring().are_needed else [{}, *ways]
    if any(SSE in good.content for good in operation.good.values()):
        described["x-events"] = {name: _ref(model) for name, model in answers.EVENTS.items()}
    return described


def _beside_files(body: type[Body]) -> dict[str, dict[str, str]]:
    """The fields of a body, without its text."""
    root = _ref(body)["$ref"]
    return {
        name: {"$ref": f"{root}/properties/{name}"} for name in body.model_fields if name != "text"
    }


def _files(fields: dict[str, dict[str, str]]) -> dict[str, Any]:
    file = {"type": "string", "format": "binary", "description": "EPUB, Markdown or plain text"}
    form = {"type": "object", "properties": {"file": file} | fields, "required": ["file"]}
    text = {"schema": {"type": "string", "minLength": 1}}
    return {FORM: {"schema": form}, EPUB: {}} | dict.fromkeys(TEXTS, text)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _good(good: Good) -> dict[str, Any]:
    content = {
        kind: {"schema": _ref(model)} if model is not None else {}
        for kind, model in good.content.items()
    }
    return {"description": good.description, "headers": _headers(good.headers)} | (
        {"content": content} if content else {}
    )


def _problem(status: int, path: str) -> dict[str, Any]:
    # Errors that gunicorn finds before it knows the path are problems everywhere.
    content = {PROBLEM: {"schema": _ref(answers.Problem)}}
    if path.startswith("/v1/"):
        content |= {JSON: {"schema": _ref(answers.ErrorEnvelope)}}
    return {
        "description": TITLES[status],
        "headers": _headers(PROBLEM_HEADERS.get(status, ())),
        "content": content,
    }


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas() -> dict[str, Any]:
    """All models, with what only the running server knows: limits, voices, languages."""
    bodies: set[type[Body]] = {each.body for each in OPERATIONS.values() if each.body is not None}
    good = [good for each in OPERATIONS.values() for good in each.good.values()]
    told = {model for each in good for model in each.content.values() if model is not None}
    told |= {answers.Problem, answers.ErrorEnvelope, *answers.EVENTS.values()}
    _, made = models_json_schema(
        [(model, "validation") for model in sorted(bodies, key=lambda model: model.__name__)]
        + [(model, "serialization") for model in sorted(told, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = made["$defs"]
    try:
        workers = speech().workers()
    except redis.RedisError:
        workers = []
    settings = speech().settings
    known: dict[str, dict[str, Any]] = {
        "text": {"minLength": 1, "maxLength": settings.max_text_chars},
        "input": {"minLength": 1, "maxLength": settings.max_text_chars},
        "voice": _voice(voices_of(workers)),
        "language": {"enum": languages_of(workers), "default": settings.language},
    }
    for model in bodies:
        for name, schema in schemas[model.__name__]["properties"].items():
            schema |= known.get(name, {})
            schema["description"] = (ALLOWED | model.allowed)[name]
    schemas["LongBody"]["properties"]["text"]["maxLength"] = settings.max_long_text_chars
    # Either of OpenAI's names or ours; more are tolerated than can be listed.
    v1 = schemas["V1Body"]
    v1["properties"]["voice"] |= _voice([*voices_of(workers), *VOICE_NAMES])
    for name in v1["properties"].keys() - v1["required"]:
        v1["properties"][name] = {"anyOf": [v1["properties"][name], {"type": "null"}]}
    return schemas


def _voice(names: list[str]) -> dict[str, Any]:
    """One of these, or a mixture of several."""
    part = rf"({'|'.join(re.escape(name) for name in names)})(\([1-9][0-9]{{0,2}}\))?"
    mixture = rf"^{part}(\+{part}){{1,{MOST_MIXED - 1}}}$"
    return {"anyOf": [{"enum": names}, {"pattern": mixture}]}
