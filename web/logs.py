"""What the server writes to standard error: one line for each event, with time, level, process and request."""

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec
from litestar.types import HTTPScope

#: the request in which something happens; empty outside of any
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
#: ours, of which news is told too; of what we use only warnings are
OURS = ("db", "services", "web")
#: what stands before each further line of an event, so that none can pass for another event
MORE = "  | "

LogFormat = Literal["text", "json"]

access = logging.getLogger("web.access")


def set_up(form: LogFormat, *, access_log: bool = False) -> None:
    """Let everything that is logged in this process go to standard error in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    access.setLevel(logging.INFO if access_log else logging.WARNING)
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    """`TIME LEVEL PROCESS [REQUEST] LOGGER: what happened`; further lines and a traceback follow, each marked."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get()
        head = f"{_time_of(record)} {record.levelname} {record.process} [{request_id or '-'}] {record.name}: "
        message, *more = record.getMessage().strip().splitlines() or [""]
        lines = [head + one_line(message), *map(one_line, more), *_trace_of(self, record)]
        return f"\n{MORE}".join(lines)


class JsonLines(logging.Formatter):
    """An object for each event: time, level, process, request_id, logger, message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "process": record.process,
            "request_id": REQUEST_ID.get(),
            "logger": record.name,
            "message": one_line(record.getMessage().strip()),
        }
        if trace := _trace_of(self, record):
            told["traceback"] = "\n".join(trace)
        told |= getattr(record, "facts", {})
        return msgspec.json.encode(told).decode()


def one_line(text: str) -> str:
    """A text in which nothing begins another line, moves a cursor or hides what stands there."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace_of(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if stack := getattr(record, "stack", ""):
        parts.append(stack)
    return [one_line(line) for part in parts for line in part.splitlines()]


def log_access(method: str, scope: HTTPScope | None, status: int, seconds: float) -> None:
    """A line for a request that is answered; without a scope it was refused before it led anywhere."""
    if not access.isEnabledFor(logging.INFO):
        return
    path, took = path_of(scope) if scope is not None else "-", round(seconds * 1000)
    facts = {"method": method, "path": path, "status": status, "milliseconds": took}
    access.info("%s %s %d %d ms", method, path, status, took, extra={"facts": facts})


def path_of(scope: HTTPScope) -> str:
    """The path of a request without its query and without any text: that may be a secret, or be said to a model.

    A path that leads nowhere is all text.
    """
    told = scope.get("path_params") or {}

    def shown(found: re.Match[str]) -> str:
        value = told.get(found[1])
        return str(value) if isinstance(value, UUID) else "…"

    template = scope.get("path_template") if scope.get("route_handler") is not None else None
    return re.sub(r"{(\w+)[^}]*}", shown, str(template)) if template else "-"
