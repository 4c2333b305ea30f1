# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the talk with oned: its XML-RPC calls as oneadmin, and what its refusals mean.

The calls are few and simple and an action makes one or two of them, so they are written here: the
standard library's client costs an action 40 ms of imports. Answers are XML texts for
:mod:`cxm.one.xml`.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cxm.errors import ConfigError, CxmError, DataError, NotFoundError, UnreachableError
from cxm.names import VmId
from cxm.one import frontend
from cxm.one import version as one_version

_log = logging.getLogger(__name__)

Value = str | int | bool

_TIMEOUT_S: Final = 30.0
_MAX_ANSWER: Final = 1 << 28
_HTTP_OK: Final = 200
# The error codes of oned's API that an operator acts on differently.
_NOT_AUTHENTICATED: Final = 0x0100
_NO_EXISTS: Final = 0x0400
_DEFAULT_HOME: Final = "/var/lib/one"
_DEFAULT_PORT: Final = "2633"
_ANY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - what LISTEN_ADDRESS may say
_LOOPBACK: Final = re.compile(r"localhost|127\.[0-9.]+|::1")
_EVERYBODYS: Final = -2
_ALL: Final = -1
_NOT_DONE: Final = -1
_HAS_RAFT: Final = (5, 4)
_LEADERS: Final = ("0", "3")  # the only server, and the leader
_RECOVERS_BY_NUMBER: Final = (4, 14)  # before, true or false
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:@\s]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/\S*)?"
)


class Oned(Protocol):
    """oned as the actions see it; tests pass a model in its place."""

    def vm_info(self, vm: VmId) -> str:
        """The XML of a VM."""

    def image_info(self, image: int) -> str:
        """The XML of an image."""

    def datastore_info(self, datastore: int) -> str:
        """The XML of a datastore."""

    def hosts_info(self) -> str:
        """The XML of all hosts."""

    def version(self) -> str:
        """The version that oned gives itself."""


class Recorder(Oned, Protocol):
    """oned as the sync sees it: what it believes of all VMs, and how that is put right."""

    def vms_info(self) -> str:
        """The XML of all VMs that are not done, each with its last history record."""

    def leads(self) -> bool:
        """Whether this oned may change things: it leads its zone's servers, or is the only one."""

    def migrate(self, vm: VmId, host: int, *, live: bool) -> None:
        """Have a VM move to a host; raises what oned's refusal means."""

    def recover(self, vm: VmId, *, success: bool) -> None:
        """Tell how an operation ended that nobody works on; of UNKNOWN, that the VM runs."""


class XmlRpc:
    """The real :class:`Oned`, reached where OpenNebula's own tools would reach it.

    With ``only_here`` it is the oned of this machine in any case, whatever these tools would do.
    """

    def __init__(
        self, remotes: str, environ: Mapping[str, str], *, only_here: bool = False
    ) -> None:
        self._remotes = remotes
        self._environ = environ
        self._only_here = only_here

    def vm_info(self, vm: VmId) -> str:
        return self._text("one.vm.info", vm)

    def image_info(self, image: int) -> str:
        return self._text("one.image.info", image)

    def datastore_info(self, datastore: int) -> str:
        return self._text("one.datastore.info", datastore)

    def hosts_info(self) -> str:
        return self._text("one.hostpool.info")

    def version(self) -> str:
        return self._text("one.system.version")

    def vms_info(self) -> str:
        return self._text("one.vmpool.info", _EVERYBODYS, _ALL, _ALL, _NOT_DONE)

    def leads(self) -> bool:
        if one_version.parse(self.version()) < _HAS_RAFT:
            return True
        from cxm.one import xml  # noqa: PLC0415 - as in _decode

        raft = xml.parse(self._text("one.zone.raftstatus"), "RAFT")
        return xml.text_of(raft, "STATE") in _LEADERS

    def migrate(self, vm: VmId, host: int, *, live: bool) -> None:
        # Without enforce, which exists since 4.0: that the VM runs there shows that it fits.
        self.call("one.vm.migrate", vm, host, live)

    def recover(self, vm: VmId, *, success: bool) -> None:
        by_number = one_version.parse(self.version()) >= _RECOVERS_BY_NUMBER
        self.call("one.vm.recover", vm, int(success) if by_number else success)

    def _text(self, method: str, *arguments: Value) -> str:
        answer = self.call(method, *arguments)
        if not isinstance(answer, str):
            raise DataError(f"oned answered {method} with {answer!r} in place of a text")
        return answer

    def call(self, method: str, *arguments: Value, timeout_s: float = _TIMEOUT_S) -> Value:
        """Call a method and return the value of its success; raises what its refusal means."""
        url = self._endpoint()
        _log.debug("oned at %s: %s%s", url, method, arguments)
        request = _encode(method, (self._session(), *arguments))
        try:
            answer = _post(_address(url), request, timeout_s=timeout_s)
        except OSError as error:
            where = "ONE_XMLRPC or ~/.one/one_endpoint say where it is"
            where = "that of this machine is asked, and no other" if self._only_here else where
            raise UnreachableError(
                f"oned does not answer at {url}: {str(error) or type(error).__name__}",
                hint=f"is oned running? {where}",
            ) from error
        values = _decode(answer, method)
        if len(values) > 1 and values[0] is True:
            return values[1]
        said = " ".join(str(values[1]).split()) if len(values) > 1 else "nothing"
        refusal = _REFUSALS.get(values[2] if len(values) > 2 else None, CxmError)  # noqa: PLR2004
        shown = ", ".join(map(str, arguments))
        raise refusal(f"oned refused {method}({shown}): {said}")

    def _home_file(self, name: str) -> str | None:
        for home in (self._environ.get("HOME"), _DEFAULT_HOME):
            path = os.path.join(home or "/", ".one", name)
            if os.path.isfile(path):
                return path
        return None

    def _endpoint(self) -> str:
        url = self._environ.get("ONE_XMLRPC")
        path = self._home_file("one_endpoint")
        if not url and path is not None:
            with open(path, encoding="utf-8") as file:
                url = file.read().strip()
        if url and not self._only_here:
            return url
        listens = frontend.setting(self._remotes, "LISTEN_ADDRESS") or ""
        host = "127.0.0.1" if listens in _ANY_ADDRESS else listens
        if url and _is_own(url, host):
            return url
        port = frontend.setting(self._remotes, "PORT") or _DEFAULT_PORT
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/RPC2"

    def _session(self) -> str:
        path = self._environ.get("ONE_AUTH") or self._home_file("one_auth")
        hint = "oneadmin's ONE_AUTH or ~/.one/one_auth holds USER:PASSWORD"
        if not path:
            raise ConfigError("there is no one_auth to speak to oned with", hint=hint)
        try:
            with open(path, encoding="utf-8") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the credentials for oned cannot be read: {error}", hint=hint) from (
                error
            )


_REFUSALS: Final[Mapping[Value | None, type[CxmError]]] = {
    _NOT_AUTHENTICATED: ConfigError,
    _NO_EXISTS: NotFoundError,
}


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _encode(method: str, arguments: tuple[Value, ...]) -> bytes:
    """An XML-RPC call."""
    params = []
    for value in arguments:
        if isinstance(value, bool):
            typed = f"<boolean>{value:d}</boolean>"
        elif isinstance(value, int):
            typed = f"<i4>{value}</i4>"
        else:
            typed = f"<string>{_escape(value)}</string>"
        params.append(f"<param><value>{typed}</value></param>")
    body = f"<methodName>{method}</methodName><params>{''.join(params)}</params>"
    return f'<?xml version="1.0"?><methodCall>{body}</methodCall>'.encode()


def _decode(answer: bytes, method: str) -> list[Value]:
    """The values of the array that oned answers with; raises CxmError for an XML-RPC fault."""
    from cxm.one import xml  # noqa: PLC0415 - who does not ask oned does not pay for the parser

    response = xml.parse(answer.decode(errors="replace"), "methodResponse")
    fault = response.find("fault")
    if fault is not None:
        said = " ".join("".join(fault.itertext()).split())
        raise CxmError(f"oned does not take the call {method}: {said}")
    values: list[Value] = []
    for value in response.iterfind("params/param/value/array/data/value"):
        typed = value[0] if len(value) else value
        text = typed.text or ""
        if typed.tag == "boolean":
            values.append(text.strip() == "1")
        elif typed.tag in ("i4", "int", "i8"):
            values.append(int(text))
        else:
            values.append(text)
    return values


@dataclass(frozen=True, slots=True)
class _Address:
    """Where oned listens."""

    is_plain: bool
    host: str
    port: int
    path: str


def of_this_machine(remotes: str, environ: Mapping[str, str]) -> XmlRpc:
    """The oned beside the drivers that it calls, never another one of its zone."""
    return XmlRpc(remotes, environ, only_here=True)


def _is_own(url: str, listens: str) -> bool:
    """Whether an address is this machine's and stays that: a floating one moves on."""
    host = _address(url).host.lower()
    return host == listens or _LOOPBACK.fullmatch(host) is not None


def _address(url: str) -> _Address:
    match = _URL.fullmatch(url)
    if not match:
        raise ConfigError(f"'{url}' is no address of oned", hint="see ONE_XMLRPC")
    is_plain = match["scheme"] == "http"
    port = int(match["port"] or (80 if is_plain else 443))
    return _Address(is_plain, match["host"].strip("[]"), port, match["path"] or "/")


def _post(to: _Address, body: bytes, *, timeout_s: float) -> bytes:
    """The body of the answer to an HTTP POST; raises OSError for everything that goes wrong."""
    import socket  # noqa: PLC0415 - see the module's docstring

    if not to.is_plain:
        return _post_tls(to, body, timeout_s=timeout_s)
    head = (
        f"POST {to.path} HTTP/1.0\r\nHost: {to.host}\r\nUser-Agent: cxm\r\n"
        f"Content-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((to.host, to.port), timeout=timeout_s) as connection:
        connection.sendall(head.encode() + body)
        answer = bytearray()
        while part := connection.recv(1 << 16):
            answer += part
            if len(answer) > _MAX_ANSWER:
                raise OSError("its answer is too long")
    top, found, content = bytes(answer).partition(b"\r\n\r\n")
    status, *headers = top.decode("latin-1").split("\r\n")
    if not found or status.split()[1:2] != [str(_HTTP_OK)]:
        raise OSError(f"its answer is '{status[:100]}'")
    for header in headers:
        name, _colon, value = header.partition(":")
        if name.lower() == "content-length" and str(len(content)) != value.strip():
            raise OSError(f"its answer was cut after {len(content)} of {value.strip()} bytes")
    return content


def _post_tls(to: _Address, body: bytes, *, timeout_s: float) -> bytes:
    """The same by HTTPS, for an endpoint behind a proxy."""
    import http.client  # noqa: PLC0415 - TLS is rare and its modules are large

    connection = http.client.HTTPSConnection(to.host, to.port, timeout=timeout_s)
    try:
        connection.request("POST", to.path, body, {"Content-Type": "text/xml"})
        response = connection.getresponse()
        if response.status != _HTTP_OK:
            raise OSError(f"its answer is '{response.status} {response.reason}'")
        return response.read()
    except http.client.HTTPException as error:
        raise OSError(f"its answer is broken: {error!r}") from error
    finally:
        connection.close()
