"""Answers over HTTP: all at once, or line by line, each row's as soon as it has left.

Letters: C classes.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from operator import itemgetter
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from multiexit_runner.answering import Encoded, written
from multiexit_runner.server.around import COUNTED
from multiexit_runner.server.network import Left
from multiexit_runner.server.refusals import FAILED, GONE, Refused, log, without_time
from multiexit_runner.server.served import Served

LINES = "application/x-ndjson"
"""Objects of JSON, a line each."""

Lines = AsyncGenerator[dict[str, Any], None]
"""What is said of each row, with its place under `row`, in the order in which they leave; then what
is said of all of them, with `done`. A row that broke has `error`."""


def takes_lines(accepts: Sequence[str]) -> bool:
    """Whether a client asks for lines: by name, and likes them no less than JSON.

    Args:
        accepts: its headers `Accept`.

    >>> takes_lines(["*/*"]), takes_lines(["application/x-ndjson, */*;q=0.8"])
    (False, True)
    """
    likes = {}
    for each in ",".join(accepts).lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        weights = [part[2:] for part in parameters if part.startswith("q=")] or ["1"]
        read = re.fullmatch(r"0(\.\d*)?|1(\.0*)?", weights[0])
        likes[kind] = float(weights[0]) if read else 0.0
    json = next((likes[k] for k in ("application/json", "application/*", "*/*") if k in likes), 0.0)
    return likes.get(LINES, 0.0) > 0 and likes[LINES] >= json


def line_of(place: int, left: Left, served: Served, encoded: Encoded, top_k: int) -> dict[str, Any]:
    """What is said of a row that left.

    Args:
        place: in its request.
        left: how.
        served: by what.
        encoded: its input.
        top_k: how many classes' scores are told.
    """
    if left.answer_C is None:
        return {"row": place, "error": left.error.replace("{row}", f"inputs[{place}]")}
    return {
        "row": place,
        **written(served.say(left.answer_C, left.exit, encoded, top_k)),
        "stages": list(left.ran),
        "why": left.why,
        "milliseconds": round(1000 * left.seconds, 3),
        **({"cut": True} if encoded.cut else {}),
    }


async def at_once(lines: Lines, headers: Mapping[str, str]) -> JSONResponse:
    """One answer with all rows in order, once the last one has left.

    Raises:
        Refused: a row broke.
    """
    *rows, whole = [line async for line in lines]
    answers = sorted(rows, key=itemgetter("row"))
    for row in answers:
        if "error" in row:
            raise Refused(500, row["error"])
        del row["row"]
    del whole["done"]
    certified = {"X-Multiexit-Certified": "true" if whole["certified"] else "false"}
    return JSONResponse({"answers": answers, **whole}, headers={**headers, **certified})


class LineByLine(Response):
    """A line for each row, and a last one that has `done`.

    Where it is cut short there is `error` in the last one's place. It is counted under the status
    that the answer at once would have had.
    """

    media_type = LINES

    def __init__(self, lines: Lines, headers: Mapping[str, str]):
        super().__init__(headers=headers)
        del self.headers["Content-Length"]
        self.lines = lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""

        async def write(line: Any) -> None:
            body = bytes(JSONResponse(line).body) + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        cut = None
        try:
            async with aclosing(self.lines) as lines:
                async for line in lines:
                    if "error" in line:
                        scope[COUNTED] = 500
                    await write(line)
        except Refused as refused:
            cut = refused
        except asyncio.CancelledError as cancelled:
            scope[COUNTED] = GONE
            cut = without_time(cancelled)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            cut = Refused(500, FAILED)
        if cut is not None:
            scope[COUNTED] = cut.status
        with suppress(asyncio.CancelledError):  # once more, where the client doesn't read
            if cut is not None:
                await write({"error": cut.detail})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
