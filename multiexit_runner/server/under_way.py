"""A request's rows on their way through the network, seen from the loop of HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from fastapi import Request

from multiexit_runner.answering import Encoded
from multiexit_runner.server.dial import Entry
from multiexit_runner.server.network import Left, Row
from multiexit_runner.server.orders import Order
from multiexit_runner.server.refusals import GONE, Refused


class Taken(NamedTuple):
    """A request that wasn't refused.

    Args:
        began: when it came.
        order: how its rows stop.
        entry: of the dial.
        prepared: its inputs.
        budget: of each row, in seconds.
        top_k: how many classes' scores are told.
    """

    began: float
    order: Order
    entry: Entry | None
    prepared: Sequence[Encoded]
    budget: float | None
    top_k: int


@contextmanager
def under_way(
    taken: Taken,
    submit: Callable[[Sequence[Row]], None],
    on_left: Callable[[int, Left], None],
    request: Request,
) -> Iterator[AsyncIterator[tuple[int, Left]]]:
    """Run a request's rows, and no further than this lasts.

    Args:
        taken: what was asked.
        submit: lets rows begin, or refuses.
        on_left: called with a row's place when it left, however slowly its client takes answers.
        request: whose client may go.

    Yields:
        The rows' places and how they left, as they do; a refusal once the client is gone.
    """
    loop, gone = asyncio.get_running_loop(), False
    leaving: asyncio.Queue[tuple[int, Left] | None] = asyncio.Queue()

    def told(place: int, left: Left) -> None:
        on_left(place, left)
        leaving.put_nowait((place, left))

    def tell(place: int, left: Left) -> None:  # in the scheduler's thread
        loop.call_soon_threadsafe(told, place, left)

    async def each() -> AsyncIterator[tuple[int, Left]]:
        for _ in taken.prepared:
            if (row := await leaving.get()) is None:
                raise Refused(GONE, "the client is gone")
            yield row

    policy, max_exit = taken.order.policy, taken.order.max_exit
    submit(
        [
            Row(encoded.inputs, policy, partial(tell, place), max_exit, taken.budget, lambda: gone)
            for place, encoded in enumerate(taken.prepared)
        ]
    )
    watch = asyncio.create_task(_disconnected(request))
    watch.add_done_callback(lambda _: leaving.put_nowait(None))
    try:
        yield each()
    finally:
        gone = True
        watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
