"""HTTP as it comes over the wire: headers of a size that can be held."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 1 << 20
"""Bytes that come before the headers of a request have ended, at most."""


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself takes headers without end."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._in_headers, self._before_headers = True, 0

    def data_received(self, data: bytes) -> None:
        self._before_headers += len(data)
        if self._before_headers > MOST and self._in_headers:
            self.send_400_response("The headers are too large.")
            self.transport.close()
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_headers, self._before_headers = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers, self._before_headers = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_headers, self._before_headers = True, 0
        super().on_message_complete()
