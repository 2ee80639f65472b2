"""A source of batches, read a window at a time."""

import queue
import threading
from collections.abc import Iterable, Iterator, Sized
from itertools import islice, zip_longest
from typing import Any, NamedTuple

PATIENCE = 0.05
"""Seconds for which what has come waits for more."""


class Window(NamedTuple):
    """Batches that came, and what the source raised behind them."""

    batches: list[Any]
    error: BaseException | None


def windows(source: Iterable[Any], most: int) -> Iterator[Window]:
    """What comes from a source, in order: `most` items together, or those that have come when it
    says nothing for `PATIENCE` seconds.

    The source is read in a thread of its own, no more than `most` items ahead of what was handed
    out and done with.
    """
    messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    free, stopped = threading.Semaphore(most), threading.Event()

    def read() -> None:
        try:
            items_of = iter(source)
            while free.acquire() and not stopped.is_set():
                messages.put(("item", next(items_of)))
        except StopIteration:
            messages.put(("end", None))
        except BaseException as error:  # whatever it is, it belongs to whoever asks for the rows
            messages.put(("end", error))

    threading.Thread(target=read, name="multiexit-stream", daemon=True).start()
    try:
        kind, value = messages.get()
        while True:
            items: list[Any] = []
            while kind == "item":
                items.append(value)
                if len(items) == most:
                    break
                try:
                    kind, value = messages.get(timeout=PATIENCE)
                except queue.Empty:
                    break
            ended = kind == "end"
            if items or ended:
                yield Window(items, value if ended else None)
            if ended:
                return
            free.release(len(items))
            kind, value = messages.get()
    finally:
        stopped.set()
        free.release()


def windows_at_hand(source: Iterator[Any], most: int) -> Iterator[Window]:
    """`windows` of what is there already: whole ones, without a thread."""
    error = None
    while error is None:
        batches: list[Any] = []
        try:
            batches.extend(islice(source, most))
        except Exception as raised:  # whatever the user's source raises
            error = raised
        if batches or error is not None:
            yield Window(batches, error)
        if len(batches) < most:
            return


def check_one_each(batches: Iterable[Any], given: Iterable[Any], name: str) -> None:
    """Refuse more or fewer of what is given than batches, where both numbers are known.

    Args:
        batches: of a stream.
        given: something for each of them.
        name: of the argument that it is.

    Raises:
        ValueError: with both numbers.
    """
    sizes = [_size(batches), _size(given)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"the stream has {sizes[0]} batches, and {name} {sizes[1]} items: give one for each "
            "batch, which may hold one for each of its rows"
        )


def one_each(batches: Iterable[Any], given: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """Each batch with what is given for it, of which one is read behind each batch.

    Args:
        batches, given, name: as for `check_one_each`.

    Raises:
        ValueError: where one of the two ends before the other.
    """
    end = object()
    for number, (batch, its) in enumerate(zip_longest(batches, given, fillvalue=end)):
        if its is end:
            raise ValueError(
                f"batch {number} of the stream: {name} has ended; give one for each batch"
            )
        if batch is end:
            raise ValueError(
                f"{name} goes on behind the stream's {number} batches: give one for each batch"
            )
        yield batch, its


def _size(source: Iterable[Any]) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except TypeError:  # a loader's of a data set without a length
        return None
