"""Around every request: its name and time, and a body that can be held and comes in time."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse

from multiexit_runner.server.refusals import without_time

COUNTED = "multiexit.counted"
"""In a request's scope: the status that its response is counted under, where another one was sent
before it was known."""


class LimitBodies:
    """Refuses requests whose body is too large, said beforehand or not, or doesn't come.

    Args:
        app: behind it.
        most: bytes.
        seconds: for the whole body to come.
    """

    def __init__(self, app: Any, most: int, seconds: float):
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.most:
            return await self._refuse(scope, receive, send)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.seconds):
                while size <= self.most:
                    parts.append(message := await receive())
                    size += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
        except TimeoutError:
            detail = f"a request's body must come within {self.seconds:g} s"
            late = JSONResponse({"detail": detail}, 408, {"Connection": "close"})
            return await late(scope, receive, send)
        if size > self.most:
            return await self._refuse(scope, receive, send)
        parts.reverse()

        async def again() -> Any:
            return parts.pop() if parts else await receive()

        return await self.app(scope, again, send)

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        detail = f"a request's body is at most {self.most / 1e6:g} MB"
        refusal = JSONResponse({"detail": detail}, 413, {"Connection": "close"})  # more may come
        await refusal(scope, receive, send)


class Named:
    """Gives each request an id, or takes its own, and tells of the response once it is sent.

    A request that uvicorn cancels, at the end of the time that a service takes to end, gets 503.

    Args:
        app: behind it; what it puts under `COUNTED` is told in place of the status that it sent.
        on_response: called with path, status, id and seconds.
    """

    def __init__(self, app: Any, on_response: Callable[[str, int, str, float], None]):
        self.app, self.on_response = app, on_response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        id = given.decode("latin-1") if 0 < len(given) <= 100 else uuid.uuid4().hex
        status = None

        async def named(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode("latin-1"))]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except asyncio.CancelledError as cancelled:
            if status is not None:
                raise
            await without_time(cancelled).response()(scope, receive, named)
        except Exception:
            status = status or 500  # as it will be, around this
            raise
        finally:
            if status is not None:
                seconds = time.perf_counter() - start
                self.on_response(scope["path"], scope.get(COUNTED, status), id, seconds)
