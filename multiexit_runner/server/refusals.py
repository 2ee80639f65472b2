"""What is refused, in a sentence."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from multiexit_runner.naming import unknown
from multiexit_runner.server.asking import Ask

log = logging.getLogger("multiexit.server")


MOST = 500
"""Characters of a sentence: what it repeats of a request may be long."""


class Refused(Exception):
    """A request that is refused, with its status, a sentence and headers."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail[:MOST], dict(headers or {})

    def response(self) -> JSONResponse:
        """What is sent."""
        return JSONResponse({"detail": self.detail}, self.status, self.headers)


GONE = 499
"""The status of what nobody waits for any more, in metrics and the log."""
FAILED = "the service failed on this request; its log says why"


def without_time(cancelled: asyncio.CancelledError) -> Refused:
    """The refusal of what uvicorn cancels, at the end of the time that a service takes to end.

    Raises:
        CancelledError: a cancel of others, around this app.
    """
    if "shutdown" not in str(cancelled):
        raise cancelled
    detail = "the service ends, and had no time left for all of this request: ask another one"
    return Refused(503, detail, {"Connection": "close"})


async def refused(request: Request, error: Any) -> JSONResponse:
    return error.response()


async def invalid(request: Request, error: Any) -> JSONResponse:
    """A body of another form, in a sentence."""
    errors = error.errors()  # an unknown key may be a known one that is missing
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    if isinstance(error.body, bytes) and error.body:
        given = request.headers.getlist("content-type")
        return JSONResponse({"detail": not_json(given)}, 415)
    if first["type"] == "extra_forbidden":
        there = "a request may have"
        detail = str(unknown("key", first["loc"][-1], Ask.model_fields, there=there))
        return JSONResponse({"detail": detail}, 422)
    place = f"{'.'.join(map(str, first['loc'][1:])) or 'the body':.80}"
    got = f", got {first['input']!r:.80}" if first["type"] != "missing" else ""
    return JSONResponse({"detail": f"{place}: {first['msg']}{got}"}, 422)


def not_json(types: Sequence[str]) -> str:
    """A request whose content types, of which there is one, aren't that of JSON."""
    given = ", ".join(types) or "none"
    return f"the content type must be application/json, or …+json, got {given:.80}"


async def missing(request: Request, error: Any) -> JSONResponse:
    paths = dict.fromkeys(route.path for route in request.app.routes)
    return JSONResponse({"detail": str(unknown("path", request.url.path, paths))}, 404)


async def other_method(request: Request, error: Any) -> JSONResponse:
    path, allowed = request.url.path, error.headers["Allow"]
    detail = f"{path:.80} takes {allowed}, got {request.method:.80}"
    return JSONResponse({"detail": detail}, 405, error.headers)


async def failed(request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error)
    return JSONResponse({"detail": FAILED}, 500)
