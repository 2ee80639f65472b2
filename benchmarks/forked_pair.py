"""Work that is done in two processes on gloo, forked from this one."""

import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

SECONDS = 300


def in_two_processes(work: Callable[[], Sequence[float]]) -> list[float]:
    """What the first of both gives.

    Nothing may have been differentiated before in this process: its threads don't come along.

    Raises:
        AssertionError: one that fails, with its error, or doesn't end in time.
    """
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    context = get_context("fork")
    answers: Any = context.SimpleQueue()
    children = [context.Process(target=_one, args=(rank, port, work, answers)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(SECONDS)
        child.kill()
    found = dict([answers.get() for _ in children if not answers.empty()])
    if wrong := [said for said in found.values() if isinstance(said, str)]:
        raise AssertionError(wrong[0])
    if len(found) < 2:
        raise AssertionError(f"a process that died, or didn't end in {SECONDS} s")
    return found[0]


def _one(rank: int, port: int, work: Callable[[], Sequence[float]], answers: Any) -> None:
    from accelerate.state import AcceleratorState

    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
    }
    AcceleratorState._reset_state(True)
    try:
        said: Any = [float(each) for each in work()]
    except Exception as error:  # whatever it is, it is what is looked for
        said = f"{type(error).__name__} {error}"
    answers.put((rank, said))
