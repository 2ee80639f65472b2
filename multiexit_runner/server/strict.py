"""JSON of which nothing is lost on the way in."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.routing import APIRoute

from multiexit_runner.json_files import unique_keys
from multiexit_runner.server.refusals import not_json

MOST_KEYS = 16
"""Of an object: more than any that is read. A message about each of a million would take long."""


class _StrictRequest(Request):
    """A request that says each thing once, and in its JSON: of two keys alike the first would be
    lost, and so would what is in the address."""

    async def json(self) -> Any:
        if len(given := self.headers.getlist("content-type")) > 1:
            raise HTTPException(415, not_json(given))
        codings = ",".join(self.headers.getlist("content-encoding")).split(",")
        packed = [each for each in map(str.strip, codings) if each.lower() not in ("", "identity")]
        if packed:
            detail = f"a body in {', '.join(packed):.80} isn't read: send it as it is"
            raise HTTPException(415, detail)
        for name in self.query_params:
            detail = f"{name!r:.80} is in the address, of which nothing is read: say it in the body"
            raise HTTPException(422, detail)
        try:
            return json.loads(await self.body(), object_pairs_hook=_few_unique_keys)
        except RecursionError as error:
            raise HTTPException(400, "the body is nested too deeply") from error
        except ValueError as error:
            raise HTTPException(400, f"the body can't be read as JSON: {error}") from error


class StrictRoute(APIRoute):
    """A route whose requests are read so."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Any:
            return await inner(_StrictRequest(request.scope, request.receive))

        return handle


def _few_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise HTTPException(422, f"an object has at most {MOST_KEYS} keys here, got {len(pairs)}")
    try:
        return unique_keys(pairs)
    except ValueError as error:
        raise HTTPException(422, f"{error}: say it once") from error
