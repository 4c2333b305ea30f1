# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a small oned for stubs that run as processes: it answers XML-RPC calls from records."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

NO_EXISTS = 0x0400


class _Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2",)


@contextmanager
def oned_of(records: Mapping[tuple[str, int], str]) -> Iterator[int]:
    """Answer ``(method, id)`` with a text; gives the port."""
    server = SimpleXMLRPCServer(("127.0.0.1", 0), _Handler, logRequests=False)

    def answer(method: str, params: tuple[Any, ...]) -> list[Any]:
        text = records.get((method, params[1]))
        if text is None:
            return [False, f"[{method}] Error getting [{params[1]}].", NO_EXISTS]
        return [True, text, 0]

    server.register_instance(type("_Oned", (), {"_dispatch": staticmethod(answer)})())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
