# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the stand-in's XML-RPC interface: the calls that cxm makes, answered as oned does."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

from cxm.errors import CxmError, NotFoundError

NOT_AUTHENTICATED: Final = 0x0100
NO_EXISTS: Final = 0x0400
ACTION: Final = 0x0800
API: Final = 0x1000

Answer = list[object]  # success, value or message, error code
Method = Callable[..., object]


class _Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2", "/")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are kept by the server's owner, not printed."""


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer, SimpleXMLRPCDispatcher):
    """Answers ``one.*`` calls on a socket that listens already."""

    daemon_threads = True

    def __init__(
        self, listening: socket.socket, session: str, methods: Mapping[str, Method]
    ) -> None:
        socketserver.TCPServer.__init__(
            self, listening.getsockname(), _Handler, bind_and_activate=False
        )
        SimpleXMLRPCDispatcher.__init__(self, allow_none=True, encoding=None)
        self.socket.close()
        self.socket = listening
        self._session = session
        self.calls: list[tuple[object, ...]] = []
        self._methods = methods
        self._thread = threading.Thread(target=self.serve_forever, daemon=True, name="xmlrpc")
        self._thread.start()

    def _dispatch(self, method: str, params: Iterable[object]) -> Answer:
        session, *given = params
        if session != self._session:
            text = f"[{method}] User couldn't be authenticated, aborting call."
            return [False, text, NOT_AUTHENTICATED]
        self.calls.append((method, *given))
        if method not in self._methods:
            return [False, f"[{method}] the stand-in has no such method", API]
        try:
            return [True, self._methods[method](*given), 0]
        except NotFoundError as error:
            return [False, f"[{method}] {error.message}", NO_EXISTS]
        except CxmError as error:
            return [False, f"[{method}] {error.message}", ACTION]

    def stop(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=5)
