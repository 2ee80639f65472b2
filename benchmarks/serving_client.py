"""A client that never waits, and others that do harm: for `serving_load.py`."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np

PORT, IDLE = 8123, 2.0
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b'POST /predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"inputs"',
)
Row = dict[str, Any]


class Connection:
    """One connection that is kept alive, with just as much HTTP as the service needs."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.used = 0.0

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Send a request, and read status and body.

        A connection that was idle for long may be closed just now: another one is opened.
        """
        stale = time.perf_counter() - self.used > IDLE
        self.used = time.perf_counter()
        if self.reader is None or self.writer is None or stale:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", PORT)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(int(x[15:]) for x in lines if x.lower().startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self.reader.readexactly(length)


class Part:
    """What became of the requests of one rate.

    Attributes:
        statuses: how many ended how.
        answered: of each that was: when it was due, its latency, and the answer.
    """

    def __init__(self, rate: float, begin: float, seconds: float):
        self.rate, self.begin, self.seconds = rate, begin, seconds
        self.statuses: Counter[int | str] = Counter()
        self.answered: list[tuple[float, float, Row]] = []

    def row(self, target: float) -> Row:
        """The columns of a table; the target is in seconds."""
        statuses, answers = self.statuses, [answer for *_, answer in self.answered]
        latencies = [latency for _, latency, _ in self.answered]
        p50, p95, p99 = (1000 * np.percentile(latencies or [np.nan], [50, 95, 99])).round(1)
        last = max((when + latency for when, latency, _ in self.answered), default=self.begin)
        in_time = sum(latency <= target for latency in latencies)
        others = {k: v for k, v in statuses.items() if k not in (200, 429, 503, "away")}
        layers = [answer["answers"][0]["layers"] for answer in answers]
        scores = [answer["expected_score"] for answer in answers if "expected_score" in answer]
        row = {
            "rate": self.rate, "answered": statuses[200],
            "a second": round(statuses[200] / max(self.seconds, last - self.begin), 1),
            "refused": statuses[429] + statuses[503], "away": statuses["away"],
            "lost": sum(others.values()), "in time (%)": round(100 * in_time / statuses.total(), 1),
            "p50 (ms)": float(p50), "p95 (ms)": float(p95), "p99 (ms)": float(p99),
            "mean layers": round(float(np.mean(layers or [np.nan])), 2),
        }  # fmt: skip
        return row | ({"expected score": round(float(np.mean(scores)), 4)} if scores else {})


async def offered(
    bodies: list[bytes], rates: list[tuple[float, float]], seed: int = 0
) -> list[Part]:
    """Requests at rates for so many seconds each, part after part, and what became of them."""
    draw, start, due, begin = np.random.default_rng(seed), time.perf_counter(), [], 0.0
    parts: list[Part] = []
    for rate, seconds in rates:
        parts.append(Part(rate, begin, seconds))
        times = begin + np.cumsum(draw.exponential(1 / rate, int(rate * seconds)))
        due += [(when, parts[-1]) for when in times.tolist()]
        begin += seconds
    idle: list[Connection] = []

    async def one(when: float, part: Part, body: bytes) -> None:
        connection = idle.pop() if idle else Connection()
        try:
            status, answer = await connection.ask(body)
        except ConnectionRefusedError:
            part.statuses["away"] += 1
            return
        except (OSError, asyncio.IncompleteReadError):
            part.statuses["away" if await gone() else "lost"] += 1
            return
        idle.append(connection)
        part.statuses[status] += 1
        if status == 200:
            latency = time.perf_counter() - start - when
            part.answered.append((when, latency, json.loads(answer)))

    tasks = []
    for number, (when, part) in enumerate(due):
        if (wait := when - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(when, part, bodies[number % len(bodies)])))
    await asyncio.gather(*tasks)
    return parts


async def gone() -> bool:
    """Whether nobody listens any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        return True
    writer.close()
    return False


@asynccontextmanager
async def bad_clients(count: int = 4) -> AsyncIterator[None]:
    """Clients that send what is no request, and others that never end one."""

    async def send(data: bytes, seconds: float) -> None:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
                writer.write(data)
                await asyncio.sleep(seconds)
                writer.close()

    tasks = [asyncio.create_task(send(GARBAGE[n % 2], 0.2 + n % 2)) for n in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
