"""The end of a service, at which connections that nobody has accepted yet are answered too."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import uvicorn

MOMENT = 0.001
"""Seconds in which asyncio makes connections of those that it has just accepted; where a server is
closed before, they hang."""


class Server(uvicorn.Server):
    """uvicorn's, which by itself resets those that wait in the kernel when it closes its sockets.

    Here they are accepted first, and then end as connections do on which nothing has come. Its
    protocol is `multiexit_runner.server.wire.LimitedHttp`.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, answer what has come, and close."""
        await asyncio.sleep(MOMENT)
        waiting = []
        for server, listening in zip(self.servers, sockets or [], strict=False):
            waiting += _accepted(listening)
            server.close()  # at once: hardly anybody comes in between
        for each in list(self.server_state.connections):
            each.shutdown()
        protocol = partial(
            self.config.http_protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            ends=True,
        )
        for each in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, each)
        await super().shutdown(sockets)


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """Connections that wait at a socket, which doesn't block."""
    with suppress(OSError):  # none waits, or there can't be more open files
        while True:
            yield listening.accept()[0]
