"""The service's HTTP: what is asked, what is answered, and what is refused.

Letters: C classes.
"""

import logging
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from multiexit_runner.answering import Encoded, check_top
from multiexit_runner.server.allowed import dial_of, place_of, without_certificate
from multiexit_runner.server.around import LimitBodies, Named
from multiexit_runner.server.asking import Ask, characters, read_inputs
from multiexit_runner.server.dial import Entry, Shed
from multiexit_runner.server.info import info
from multiexit_runner.server.lines import LineByLine, Lines, at_once, line_of, takes_lines
from multiexit_runner.server.logs import Said
from multiexit_runner.server.metrics import Metrics
from multiexit_runner.server.network import BY_POLICY, Left, Row
from multiexit_runner.server.options import Options
from multiexit_runner.server.orders import Order, Orders
from multiexit_runner.server.page import page
from multiexit_runner.server.refusals import (
    Refused,
    failed,
    invalid,
    missing,
    other_method,
    refused,
)
from multiexit_runner.server.saying import RESPONSES
from multiexit_runner.server.scheduler import Full, Scheduler
from multiexit_runner.server.served import Served
from multiexit_runner.server.strict import StrictRoute
from multiexit_runner.server.under_way import Taken, under_way
from multiexit_runner.server.warming import warm_up
from multiexit_runner.server.watch import Watch

SOME = 2_000
"""Characters that are tokenised at once; more go to another thread."""

log = logging.getLogger("multiexit.server")


class Service:
    """A network behind HTTP.

    Args:
        served: the network.
        options: of the operator.

    Attributes:
        app: to be run by an ASGI server.
        scheduler: that runs the network; it is started with the app.
    """

    def __init__(self, served: Served, options: Options):
        self.options = options
        self.dial = dial_of(served, options)
        if self.dial is not None:
            served = without_certificate(served)
        self.served = served
        self.metrics = Metrics()
        settings = () if self.dial is None else self.dial.settings
        self.orders = Orders(served, options, settings[0].said if settings else None)
        self.scheduler = Scheduler(
            served.network,
            batch_size=options.batch_size,
            max_wait=options.max_wait_ms / 1000,
            max_rows=options.max_rows,
            on_run=self._on_run,
        )
        self.metrics.queue.set_function(lambda: self.scheduler.rows)
        self.watch = Watch(served, options.drift_alpha, settings)
        self.metrics.certified.set_function(lambda: self.watch.certified)
        self.metrics.evidence.set_function(lambda: self.watch.evidence)
        self.metrics.alarm.set_function(lambda: self.watch.alarm is not None)
        for name in served.numbers(self._in_force()):
            number = self.metrics.number.labels(name)
            number.set_function(lambda name=name: served.numbers(self._in_force())[name])
        if (dial := self.dial) is not None:
            self.metrics.turned(lambda: dial.settings[dial.place], lambda: self.watch.alarm is None)
        self.ready = False
        self.readers = CapacityLimiter(os.cpu_count() or 1)  # so many large images in memory
        self.app = self._app()

    def _app(self) -> FastAPI:
        app = FastAPI(
            title="multiexit",
            description="Answers early where it is sure.",
            lifespan=self._life,
            docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,  # to where a proxy before it doesn't listen
        )
        app.router.route_class = StrictRoute
        app.add_middleware(
            LimitBodies,
            most=int(self.options.max_body_mb * 1e6),
            seconds=self.options.read_seconds,
        )
        app.add_middleware(Named, on_response=self._on_response)
        app.add_exception_handler(Refused, refused)
        app.add_exception_handler(RequestValidationError, invalid)
        app.add_exception_handler(404, missing)
        app.add_exception_handler(405, other_method)
        app.add_exception_handler(Exception, failed)
        app.post(
            "/predict",
            summary="Answer inputs, early where the policy allows",
            response_model=None,  # described below, and sent as it is
            responses=RESPONSES,
        )(self.predict)
        for path, summary, answer in (
            ("/health", "Whether the process lives", self._health),
            ("/ready", "Whether requests are taken", self._is_ready),
        ):
            app.get(path, summary=summary)(answer)
            app.head(path, include_in_schema=False)(answer)
        app.get("/info", summary="What is served")(self._info)
        app.get("/metrics", summary="For Prometheus")(self._metrics)
        app.get("/docs", include_in_schema=False)(lambda: HTMLResponse(page(app.openapi())))
        return app

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(self.scheduler.start, self._warm_up)
        self.ready = True
        yield
        self.ready = False
        await to_thread.run_sync(self.scheduler.close)

    def _warm_up(self) -> None:
        start = time.perf_counter()
        ran = self.dial.ran if self.dial is not None else lambda *run: None
        rows = warm_up(self.served, self._in_force(), self.options.batch_size, ran)
        seconds = round(time.perf_counter() - start, 3)
        log.info(Said(message="warmed up", rows=rows, seconds=seconds))

    async def predict(self, ask: Ask, request: Request) -> Response:
        """Answer inputs: `answers` has one for each, in order; or lines have, as rows leave."""
        lines = self._lines(await self._taken(ask), request)
        headers = await anext(lines)
        chunked = request.scope.get("http_version") != "1.0"  # which ends an answer by its length
        if chunked and takes_lines(request.headers.getlist("accept")):
            return LineByLine(lines, headers)
        return await at_once(lines, headers)

    async def _taken(self, ask: Ask) -> Taken:
        """What is asked, made ready."""
        began = time.perf_counter()
        if not self.ready:
            raise Refused(503, "the service isn't running: it ends, or its app was never started")
        items = ask.inputs if isinstance(ask.inputs, list) else [ask.inputs]
        if not items or len(items) > self.options.max_request_rows:
            raise Refused(
                422, f"a request has 1 to {self.options.max_request_rows} inputs, got {len(items)}"
            )
        if len(items) > self.options.max_rows:  # there will never be room
            raise Refused(
                413, f"{len(items)} inputs; this service has room for {self.options.max_rows}"
            )
        try:
            order = self.orders.of(ask.policy, ask.threshold, ask.max_exit, ask.budget_ms)
            top_k = check_top(ask.top_k, self.served.problem, self.served.num_classes)
            order, entry = self._enter(order, len(items))  # what is shed isn't read
            prepared = await self._read(items, entry)
        except RecursionError as error:
            raise Refused(422, "inputs: lists in lists, too deep to be read") from error
        except ValueError as error:
            raise Refused(422, str(error)) from error
        budget = None if ask.budget_ms is None else ask.budget_ms / 1000
        return Taken(began, order, entry, prepared, budget, top_k)

    async def _lines(self, taken: Taken, request: Request) -> Lines:
        """The answer's headers, once its rows are in the queue, and then its lines."""
        order, entry, prepared = taken.order, taken.entry, taken.prepared
        lefts: dict[int, Left] = {}
        with ExitStack() as watching:
            setting = 0 if entry is None else entry.place
            watched: list[Left] = []
            if order.alone:
                watched = watching.enter_context(self.watch.request(setting))

            def on_left(place: int, left: Left) -> None:
                self._leave(entry, 1, left)
                self.metrics.on_left(left, self._layers(left), self.served.exits[-1] + 1)
                if left.why != "abandoned":
                    lefts[place] = left
                if len(lefts) == len(prepared):
                    watched.extend(lefts[place] for place in range(len(lefts)))
                    watching.close()
                    if self.dial is not None and entry is not None:
                        self.dial.answered(entry, time.perf_counter() - taken.began)

            submit = partial(self._submit, entry)
            with under_way(taken, submit, on_left, request) as leaving:
                yield {"X-Multiexit-Policy": order.said}
                async for place, left in leaving:
                    yield line_of(place, left, self.served, prepared[place], taken.top_k)
        certified = order.alone and self.watch.certified
        certified = certified and all(left.why in BY_POLICY for left in lefts.values())
        expected = order.expected
        if self.watch.alarm is not None:
            expected = {**dict.fromkeys(expected), "drift": True}
        yield {"done": True, "policy": order.said, **expected, "certified": certified}

    async def _read(self, items: list[Any], entry: Entry | None) -> list[Encoded]:
        read = partial(read_inputs, self.served, self.options, items)
        try:
            if self.served.kind == "text" and characters(items) <= SOME:
                return read()
            return await to_thread.run_sync(read, limiter=self.readers)
        except BaseException:  # a client that goes cancels it
            self._leave(entry, len(items))
            raise

    def _submit(self, entry: Entry | None, rows: Sequence[Row]) -> None:
        """Let rows begin, if there is room."""
        try:
            self.scheduler.submit(rows)
        except Full as full:
            self._leave(entry, len(rows))
            seconds = max(1, math.ceil(full.retry_after))
            raise Refused(
                503 if not self.ready else 429, f"{full}: come again in {seconds} s",
                {"Retry-After": str(seconds)},
            ) from full  # fmt: skip

    def _enter(self, order: Order, rows: int) -> tuple[Order, Entry | None]:
        """The order with the dial's setting, and the dial's entry of these rows."""
        if self.dial is None:
            return order, None
        try:
            entry = self.dial.enter(rows, place_of(order, self.served, self.dial.settings))
        except Shed as shed:
            self.metrics.shed.inc()
            seconds = max(1, math.ceil(shed.retry_after))
            raise Refused(
                503, f"{shed}: come again in {seconds} s",
                {"Retry-After": str(seconds), "X-Multiexit-Shedding": "true"},
            ) from shed  # fmt: skip
        return order if order.own else order.turned(self.dial.settings[entry.place]), entry

    def _leave(self, entry: Entry | None, rows: int, left: Left | None = None) -> None:
        """Tell the dial of rows that left; None is without having been run."""
        if self.dial is None or entry is None:
            return
        layers, seconds = None, 0.0
        if left is not None and left.answer_C is not None:
            layers, seconds = self._layers(left), left.run_seconds
        for _ in range(rows):
            self.dial.left(entry, layers, seconds)

    def _on_run(self, exit: int, rows: int, seconds: float) -> None:
        self.metrics.on_run(exit, rows, seconds)
        if self.dial is not None:
            self.dial.ran(exit, rows, seconds)

    def _in_force(self) -> Any:
        """The policy of a request without one, as the network takes it."""
        if self.dial is None:
            return self.orders.default
        return self.dial.settings[self.dial.place].policy

    @property
    def policy(self) -> str:
        """The policy of a request without one now, as it is typed."""
        dial = self.dial
        return self.served.policy if dial is None else dial.settings[dial.place].said

    def _layers(self, left: Left) -> int:
        """The layers that were run on a row."""
        return self.served.exits[left.ran[-1]] + 1 if left.ran else 0

    def _on_response(self, path: str, status: int, id: str, seconds: float) -> None:
        """Log a request, and count it, of other paths what there isn't."""
        if path == "/predict" or status in (404, 405):
            self.metrics.on_request(status, seconds)
        log.info(Said(request=id, path=path, status=status, ms=round(1000 * seconds, 3)))

    async def _health(self) -> dict[str, str]:
        return {"status": "alive"}

    async def _is_ready(self) -> JSONResponse:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def _info(self) -> dict[str, Any]:
        return info(self.served, self.options, self.policy, self.dial, self.watch)

    async def _metrics(self) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)
