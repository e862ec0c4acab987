"""The OpenAPI 3.1 description, made from the site map: each handler's form and view, both body forms."""

import re
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from db.version import version
from web.answer import JSON
from web.completions import SESSION_HEADER, OpenError
from web.errors import PROBLEM, STATUS
from web.forms import FORM_KINDS, KEY_FIELD

FORM, MULTIPART = FORM_KINDS
A_FILE = {
    "type": "object",
    "properties": {"file": {"type": "string", "contentMediaType": JSON}, KEY_FIELD: {"type": "string"}},
    "required": ["file"],
    "additionalProperties": False,
}


class Problem(msgspec.Struct):
    """RFC 9457, with the facts of its code."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    retry_after_seconds: int | msgspec.UnsetType = msgspec.UNSET
    limit: str | msgspec.UnsetType = msgspec.UNSET
    can_reopen: bool | msgspec.UnsetType = msgspec.UNSET
    can_fork: bool | msgspec.UnsetType = msgspec.UNSET
    used: float | msgspec.UnsetType = msgspec.UNSET
    size: float | msgspec.UnsetType = msgspec.UNSET
    remaining: float | msgspec.UnsetType = msgspec.UNSET
    resets_at: str | msgspec.UnsetType | None = msgspec.UNSET
    replacement: str | msgspec.UnsetType = msgspec.UNSET
    current_model: str | msgspec.UnsetType | None = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET
    running_turn: UUID | msgspec.UnsetType = msgspec.UNSET
    alternatives: list[str] | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType = msgspec.UNSET


@cache
def describe(app: Litestar) -> dict[str, Any]:
    """The whole description."""
    handlers = [
        (path, handler)
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        if isinstance(handler, HTTPRouteHandler) and "answers" in handler.opt
        for path in handler.paths
    ]
    structs = {form for _, handler in handlers if (form := _struct(handler, "form"))}
    structs |= {view for _, handler in handlers if isinstance(view := handler.opt["answers"], type)}
    told = [*structs, Problem, OpenError]
    schemas, components = msgspec.json.schema_components(told, ref_template="#/components/schemas/{name}")
    refs = dict(zip(told, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, handler in sorted(handlers, key=lambda one: one[0]):
        methods = sorted(method for method in handler.http_methods if method != "OPTIONS")
        for method in methods:
            paths.setdefault(_template(path), {})[method.lower()] = _operation(path, handler, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Turnkeeper",
            "version": version(),
            "description": "Governed chat sessions over several language models. Pages and scripts share these URLs.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "tk_…"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(path: str, handler: HTTPRouteHandler, refs: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": handler.fn.__name__,
        "summary": (handler.fn.__doc__ or "").strip().split("\n")[0],
        "parameters": _parameters(path, handler),
        "responses": _responses(handler, refs),
    }
    if (form := _struct(handler, "form")) is not None:
        body = {"schema": refs[form]}
        content = {JSON: body}
        if handler.opt.get("takes_file"):
            content[MULTIPART] = {"schema": A_FILE}
        elif not handler.opt.get("openai"):
            content[FORM] = body
        required = any(field.required for field in msgspec.structs.fields(form))
        operation["requestBody"] = {"required": required, "content": content}
    return operation


def _responses(handler: HTTPRouteHandler, refs: dict[Any, Any]) -> dict[str, Any]:
    """Every status of a handler: its answer in each form, a plain form's redirect, and the refusals."""
    view, text, openai = handler.opt["answers"], {"schema": {"type": "string"}}, handler.opt.get("openai")
    content: dict[str, Any] = {}
    if view == "json":
        content[JSON] = {"schema": {"type": "object"}}
    elif isinstance(view, type):
        content[JSON] = {"schema": refs[view]}
    status = str(handler.opt.get("status", handler.status_code))
    # Without a schema: what some tools take for each event, others take for the whole stream.
    streamed: dict[str, Any] = {"text/event-stream": {}} if view == "stream" or handler.opt.get("streams") else {}
    if status == "200":
        content |= streamed
    if file := handler.opt.get("file"):
        content[file] = text
    elif view != "stream" and not handler.opt.get("open") and not openai:
        content["text/html"] = text
    responses: dict[str, Any] = {status: {"description": "Done."} | ({"content": content} if status != "204" else {})}
    if streamed and status != "200":
        responses["200"] = {"description": "Done, as it went.", "content": streamed}
    if handler.opt.get("open"):
        return responses | {str(other): responses[status] for other in handler.opt.get("also", ())}
    if "POST" in handler.http_methods and not openai:
        responses["303"] = {"description": "Done; what changed is at Location. The answer to a plain form."}
        to_htmx = {"description": "Done, in the form that was asked for; to htmx what changes, or HX-Redirect."}
        told = responses.get("200", {}).get("content", {})
        responses["200"] = to_htmx | {"content": {**told, "text/html": text, "text/plain": text}}
    problem = {PROBLEM: {"schema": refs[Problem]}, "text/html": text}
    if openai:
        # What is refused before the request reaches its handler is a problem as everywhere.
        problem = {JSON: {"schema": refs[OpenError]}, PROBLEM: problem[PROBLEM]}
        responses["502"] = {"description": "The reply failed.", "content": problem}
    codes: dict[int, list[str]] = {}
    for refusal, number in STATUS.items():
        codes.setdefault(number, []).append(refusal.code)
    for number, names in sorted(codes.items()):
        responses[str(number)] = {"description": " · ".join(names), "content": problem}
    return responses


def _parameters(path: str, handler: HTTPRouteHandler) -> list[dict[str, Any]]:
    kinds = {"uuid": {"type": "string", "format": "uuid"}, "str": {"type": "string"}, "path": {"type": "string"}}
    found = [
        {"name": name, "in": "path", "required": True, "schema": kinds[kind]}
        for name, kind in re.findall(r"{(\w+):(\w+)}", path)
    ]
    if (query := _struct(handler, "asked")) is not None:
        properties = msgspec.json.schema_components([query])[1][query.__name__]["properties"]
        found += [{"name": name, "in": "query", "required": False, "schema": one} for name, one in properties.items()]
    headers = {"once": "Idempotency-Key", "stream": "Last-Event-ID", "in_session": SESSION_HEADER}
    for mark, header in headers.items():
        if handler.opt.get(mark) or handler.opt["answers"] == mark:
            found.append({"name": header, "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _template(path: str) -> str:
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def _struct(handler: HTTPRouteHandler, name: str) -> type[msgspec.Struct] | None:
    """What a handler's form or query is read into."""
    dependency = (handler.dependencies or {}).get(name)
    return getattr(getattr(dependency, "dependency", None), "struct", None)
