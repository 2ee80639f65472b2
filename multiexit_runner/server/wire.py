"""HTTP as it comes over the wire: headers of a size that can be held, which come in time."""

from asyncio import TimerHandle
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 1 << 20
"""Bytes that come before the headers of a request have ended, at most."""

LINGER = 0.5
"""Seconds that an idle connection is kept when the service ends: a request may be on its way."""

NO_PROXY = "This service is no proxy: it takes no CONNECT."
NO_UPGRADE = (
    "This service speaks HTTP/1.1: send no Upgrade header (in Java, "
    "HttpClient.Builder.version(HTTP_1_1))."
)
CLOSE = (b"connection", b"close")
SAID = b'{"detail": "the headers of a request did not come in time"}'
LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(SAID), SAID)
)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself takes headers without end and waits for them for ever.

    A new connection on which nothing comes is kept as long as one that is idle. Who asks for
    another protocol, as some clients do for HTTP/2, is refused: the body of such a request would be
    lost. When the service ends, a connection is answered once more, and told that it closes.

    Args:
        seconds: from the first byte of a request to the end of its headers.
        ends: whether the service ends already.
        args, kwargs: uvicorn's.
    """

    def __init__(self, *args: Any, seconds: float, ends: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._in_headers, self._before_headers = True, 0
        self._seconds = seconds
        self._timer: TimerHandle | None = None
        self._ends = ends
        self._asked: list[Any] = []  # cycles of requests whose headers have come

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if self._ends:
            self.loop.call_later(LINGER, self._end)

    def shutdown(self) -> None:
        if self._ends:  # it has been told
            return
        self._ends = True
        if self._unanswered():
            self._close_after()
        else:
            self.loop.call_later(LINGER, self._end)

    def _end(self) -> None:
        if self._timer is not None and not self._unanswered():
            self._give_up()  # half of a request's headers
        else:
            self._close_after()

    def _close_after(self) -> None:
        """Close once the last request is answered, and tell its client so."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        elif CLOSE not in self.cycle.default_headers:
            self.cycle.keep_alive = False  # which uvicorn before 0.53 doesn't tell the client
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]

    def _unanswered(self) -> list[Any]:
        return [each for each in self._asked if not each.response_complete]

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._seconds, self._give_up)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._wait_no_more()
        if self._unanswered():
            self._wait()  # the one before is still answered
        else:
            self.transport.write(LATE)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._before_headers += len(data)
        if self._in_headers:
            self._wait()
        if self._before_headers > MOST and self._in_headers:
            self.send_400_response("The headers are too large.")
            return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        whole = self._unanswered()
        if whole and whole[-1].more_body:  # its body is what can't be read
            broken = whole.pop()
            self.pipeline = deque(each for each in self.pipeline if each[0] is not broken)
        if whole:  # they are answered, and the last one is told that the connection closes
            self._asked, self.cycle = whole, whole[-1]
            self._close_after()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._in_headers, self._before_headers = True, 0
        self._wait()  # its first bytes may have come with the request before
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers, self._before_headers = False, 0
        self._wait_no_more()
        if self._asks_for_another():
            assert self.parser is not None
            proxy = self.parser.get_method() == b"CONNECT"
            self.send_400_response(NO_PROXY if proxy else NO_UPGRADE)
        else:
            super().on_headers_complete()
            self._asked = [*self._unanswered(), self.cycle]
            if self._ends:
                self._close_after()

    def on_message_complete(self) -> None:
        self._in_headers, self._before_headers = True, 0
        if not self._asks_for_another():
            super().on_message_complete()

    def _asks_for_another(self) -> bool:
        assert self.parser is not None
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: it was refused."""
