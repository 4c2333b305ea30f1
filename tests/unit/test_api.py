# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Oned is asked as its own tools ask it, and what goes wrong is one sentence."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import pytest

from cxm.errors import ConfigError, CxmError, DataError, NotFoundError, UnreachableError
from cxm.names import VmId
from cxm.one import api, frontend
from cxm.one.api import XmlRpc

NASTY = "a<b>&amp; 'é' \"x\" ]]> \u2603"


class _Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2",)


@contextmanager
def oned(answer: Callable[..., Any]) -> Iterator[str]:
    """An XML-RPC server of the standard library; gives its address."""
    server = SimpleXMLRPCServer(("127.0.0.1", 0), _Handler, logRequests=False)
    server.register_function(lambda *args: answer("one.vm.info", *args), "one.vm.info")
    server.register_function(lambda *args: answer("one.hostpool.info", *args), "one.hostpool.info")
    server.register_function(lambda *args: answer("one.vm.migrate", *args), "one.vm.migrate")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/RPC2"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of oneadmin with credentials, and beside it oned's directory with its remotes."""
    (tmp_path / ".one").mkdir()
    (tmp_path / ".one" / "one_auth").write_text("oneadmin:se<cret&\n")
    (tmp_path / "remotes").mkdir()
    return tmp_path


def client(home: Path, **environ: str) -> XmlRpc:
    """A client as a driver of this oned would make it."""
    return XmlRpc(str(home / "remotes"), {"HOME": str(home)} | environ)


def test_a_vm_is_asked_for(home: Path) -> None:
    """The session, the method and the arguments arrive; the text comes back as it was."""
    seen = []

    def answer(*args: Any) -> list[Any]:
        seen.append(args)
        return [True, NASTY, 0]

    with oned(answer) as url:
        assert client(home, ONE_XMLRPC=url).vm_info(VmId(42)) == NASTY
    assert seen == [("one.vm.info", "oneadmin:se<cret&", 42)]


def test_values_of_all_types_arrive(home: Path) -> None:
    """Numbers, truth values and texts keep their type on the way."""
    seen = []

    def answer(*args: Any) -> list[Any]:
        seen.append(args[2:])
        return [True, 42, 0]

    with oned(answer) as url:
        got = client(home, ONE_XMLRPC=url).call("one.vm.migrate", 42, -1, True, NASTY)  # noqa: FBT003
    assert seen == [(42, -1, True, NASTY)]
    assert got == 42


@pytest.mark.parametrize(
    ("code", "error"), [(0x0100, ConfigError), (0x0400, NotFoundError), (0x2000, CxmError)]
)
def test_a_refusal_is_one_sentence(home: Path, code: int, error: type[CxmError]) -> None:
    """Oned's own words, the call, and a class that says what to do."""
    with (
        oned(lambda *_args: [False, "[one.vm.info] Error\n getting it.", code]) as url,
        pytest.raises(error) as caught,
    ):
        client(home, ONE_XMLRPC=url).vm_info(VmId(42))
    assert caught.value.sentence() == (
        "oned refused one.vm.info(42): [one.vm.info] Error getting it."
    )
    assert type(caught.value) is error


def test_the_refusals_of_3_x_have_two_values(home: Path) -> None:
    """Old versions give no code."""
    with (
        oned(lambda *_args: [False, "no"]) as url,
        pytest.raises(CxmError, match=r"refused one\.vm\.info\(42\): no"),
    ):
        client(home, ONE_XMLRPC=url).vm_info(VmId(42))


def test_an_unknown_method_is_told(home: Path) -> None:
    """An XML-RPC fault is not taken for an answer."""
    with (
        oned(lambda *_args: [True, ""]) as url,
        pytest.raises(CxmError, match=r"does not take the call one\.nothing"),
    ):
        client(home, ONE_XMLRPC=url).call("one.nothing")


def test_a_number_in_place_of_a_text_is_refused(home: Path) -> None:
    """A pool is XML and nothing else."""
    with oned(lambda *_args: [True, 5, 0]) as url, pytest.raises(DataError):
        client(home, ONE_XMLRPC=url).hosts_info()


def test_no_oned_is_one_sentence(home: Path) -> None:
    """Nobody listens at the address."""
    with pytest.raises(UnreachableError, match=r"oned does not answer at http://127\.0\.0\.1:1/"):
        client(home, ONE_XMLRPC="http://127.0.0.1:1/RPC2").version()


def test_oned_that_hangs_is_given_up(home: Path) -> None:
    """An action does not wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/RPC2"
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match="timed out"):
            client(home, ONE_XMLRPC=url).call("one.vm.info", 1, timeout_s=0.2)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"", "its answer is ''"),
        (b"HTTP/1.0 503 Busy\r\n\r\n", "its answer is 'HTTP/1.0 503 Busy'"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n<meth", "cut after 5 of 100 bytes"),
        (b"SSH-2.0-OpenSSH\r\n", "its answer is"),
    ],
)
def test_a_broken_answer_is_one_sentence(home: Path, said: bytes, what: str) -> None:
    """What is no HTTP, or not all of it, is never parsed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/RPC2"
        with pytest.raises(UnreachableError, match=what):
            client(home, ONE_XMLRPC=url).version()
        thread.join()


def test_the_address_is_found_where_the_tools_find_it(home: Path) -> None:
    """The environment, then ~/.one/one_endpoint, then the port of oned's own settings."""
    (home / "config").write_text("GRPC_PORT=7\nPORT=1\nVNC_BASE_PORT=5900\n")
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:1/RPC2"):
        client(home).version()
    (home / ".one" / "one_endpoint").write_text("http://127.0.0.1:2/RPC2\n")
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:2/RPC2"):
        client(home).version()
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:3/RPC2"):
        client(home, ONE_XMLRPC="http://127.0.0.1:3/RPC2").version()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://floating:2633/RPC2", "http://127.0.0.1:1/RPC2"),
        ("http://10.0.0.9:2/RPC2", "http://127.0.0.1:1/RPC2"),
        ("http://127.0.0.1:2/RPC2", "http://127.0.0.1:2/RPC2"),
        ("http://localhost:2/RPC2", "http://localhost:2/RPC2"),
        ("http://[::1]:2/RPC2", r"http://\[::1\]:2/RPC2"),
    ],
)
def test_the_sync_asks_the_oned_of_this_machine(home: Path, given: str, asked: str) -> None:
    """At a floating address every frontend of a zone would take itself for the leader."""
    (home / "config").write_text("PORT=1\nLISTEN_ADDRESS=0.0.0.0\n")
    environ = {"HOME": str(home), "ONE_XMLRPC": given}
    with pytest.raises(UnreachableError, match=asked):
        api.of_this_machine(str(home / "remotes"), environ).version()
    (home / ".one" / "one_endpoint").write_text(f"{given}\n")
    with pytest.raises(UnreachableError, match=asked):
        api.of_this_machine(str(home / "remotes"), {"HOME": str(home)}).version()


def test_oned_listens_at_one_address_only(home: Path) -> None:
    """Then it is asked there: it is this machine's."""
    (home / "config").write_text("PORT=1\nLISTEN_ADDRESS=127.0.0.2\n")
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.2:1/RPC2"):
        client(home).version()
    (home / "config").write_text("PORT=1\nLISTEN_ADDRESS=::1\n")
    with pytest.raises(UnreachableError, match=r"http://\[::1\]:1/RPC2"):
        client(home).version()


@pytest.mark.parametrize("url", ["ftp://x/RPC2", "localhost:2633", "http://", "http://a b/"])
def test_a_wrong_address_is_told(home: Path, url: str) -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigError, match="is no address of oned"):
        client(home, ONE_XMLRPC=url).version()


def test_the_credentials_are_found_where_the_tools_find_them(home: Path) -> None:
    """ONE_AUTH first; without any, a sentence says what is missing."""
    other = home / "auth"
    other.write_text("other:word")
    seen = []

    def answer(*args: Any) -> list[Any]:
        seen.append(args[1])
        return [True, "", 0]

    with oned(answer) as url:
        client(home, ONE_XMLRPC=url, ONE_AUTH=str(other)).hosts_info()
        client(home, ONE_XMLRPC=url).hosts_info()
        with pytest.raises(ConfigError, match="credentials for oned cannot be read"):
            client(home, ONE_XMLRPC=url, ONE_AUTH=str(home / "none")).hosts_info()
    assert seen == ["other:word", "oneadmin:se<cret&"]


def test_tls_is_tried_where_it_is_asked_for(home: Path) -> None:
    """An https address is spoken to with TLS: a plain server is no oned there."""
    with oned(lambda *_args: [True, "", 0]) as url, pytest.raises(UnreachableError, match="SSL"):
        client(home, ONE_XMLRPC=url.replace("http:", "https:")).hosts_info()


def test_settings_of_oned(home: Path) -> None:
    """The file that every oned writes: the last value of a key, exactly that key."""
    remotes = str(home / "remotes")
    assert frontend.setting(remotes, "PORT") is None
    (home / "config").write_text('GRPC_PORT=7\nPORT=1\nPORT=2\nHOSTNAME="front"\n')
    assert frontend.setting(remotes, "PORT") == "2"
    assert frontend.setting(remotes, "HOSTNAME") == "front"
    assert frontend.setting(remotes, "HOST") is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-t 15 -r 0 -p cxm", False),
        ("-t 15 -r 0 -p -l migrate cxm", True),
        ("-l deploy,save,migrate=other cxm", True),
        ("--local=migrate,clean cxm", True),
        ("-l premigrate cxm", False),
        ("", False),
    ],
)
def test_what_a_driver_runs_on_the_frontend(home: Path, arguments: str, expected: bool) -> None:
    """By the vectors that oned writes there, unquoted; of a driver that is not there, nothing."""
    remotes = str(home / "remotes")
    assert frontend.runs_here(remotes, "vmm_cxm", "migrate") is None
    (home / "config").write_text(
        "VM_MAD=ARGUMENTS=-t 15 -l migrate kvm,EXECUTABLE=one_vmm_exec,NAME=kvm\n"
        f"VM_MAD=ARGUMENTS={arguments},EXECUTABLE=one_vmm_exec,KEEP_SNAPSHOTS=no,NAME=vmm_cxm,"
        "SUNSTONE_NAME=Xen (cxm),TYPE=xml\n"
    )
    assert frontend.runs_here(remotes, "vmm_cxm", "migrate") is expected
    assert frontend.runs_here(remotes, "other", "migrate") is None


def test_the_frontend_knows_its_names(home: Path) -> None:
    """HOSTNAME of oned's settings, and the machine's own name."""
    remotes = str(home / "remotes")
    assert frontend.is_this_machine(remotes, socket.gethostname())
    assert not frontend.is_this_machine(remotes, "front")
    assert not frontend.is_this_machine(remotes, "")
    (home / "config").write_text("HOSTNAME=front\n")
    assert frontend.is_this_machine(remotes, "FRONT")
    assert not frontend.is_this_machine(remotes, "front2")


def test_a_node_is_known_by_its_settings(home: Path) -> None:
    """Only cxm-setup node writes them."""
    assert not frontend.is_node(str(home / "cxmrc"))
    (home / "cxmrc").touch()
    assert frontend.is_node(str(home / "cxmrc"))
