"""Where a service listens, held before the network is loaded."""

import errno
import socket
from collections.abc import Sequence

BACKLOG = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


def sockets_at(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to all addresses of a host, that don't listen yet.

    Args:
        host: a name or address.
        port: 0 is a free one, of all of them the same.

    Raises:
        ValueError: no such host, or a port that can't be had.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            each = socket.socket(family, kind, protocol)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            same = sockets[0].getsockname()[1] if sockets else port
            try:
                each.bind((address[0], same, *address[2:]))
            except OSError as error:
                each.close()
                if error.errno != errno.EADDRNOTAVAIL or (not sockets and len(found) == 1):
                    raise
                continue
            sockets.append(each)
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"can't listen at host {host!r}, port {port}: {why}") from error
    if not sockets:
        raise ValueError(f"can't listen at host {host!r}: none of its addresses is this machine's")
    return sockets


def listen(sockets: Sequence[socket.socket]) -> None:
    """Listen at sockets, which two processes may have bound to one port as long as neither does.

    Raises:
        ValueError: another process listens there.
    """
    for each in sockets:
        try:
            each.listen(BACKLOG)
        except OSError as error:
            host, port, *_ = each.getsockname()
            raise ValueError(
                f"can't listen at host {host!r}, port {port}: {error.strerror}"
            ) from error
