# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The wire to monitord: messages are as it reads them, encrypted as it decrypts."""

import base64
import socket
import threading
import zlib
from pathlib import Path

import pytest

from cxm.errors import ConfigError
from cxm.one.im import channel
from cxm.one.im.channel import Kind
from cxm.run import System


def keys(directory: Path, bits: int = 1024) -> tuple[str, str]:
    """A private key's file and the public key as monitord.conf has it."""
    private = str(directory / "key.pem")
    runner = System()
    runner.run(["openssl", "genrsa", "-traditional", "-out", private, str(bits)])
    public = runner.run(["openssl", "rsa", "-in", private, "-RSAPublicKey_out"]).stdout
    return private, public


def test_message_is_one_line_of_five_words() -> None:
    """Type, result, host, time, payload."""
    line = channel.message(Kind.STATE_VM, 3, 1700000000, "A=1\n", ok=True, key=None)
    kind, result, host, stamp, payload = line.decode().split()
    assert (kind, result, host, stamp) == ("STATE_VM", "SUCCESS", "3", "1700000000")
    assert zlib.decompress(base64.b64decode(payload)) == b"A=1\n"
    assert line.endswith(b"\n")
    assert b" FAILURE " in channel.message(Kind.BEACON_HOST, 3, 1, "x", ok=False, key=None)


@pytest.mark.parametrize("form", ["as it is", "blanks for line breaks"])
def test_encrypted_message_is_decrypted_by_openssl(tmp_path: Path, form: str) -> None:
    """Block by block, as monitord does; the shell on the way has made blanks of line breaks."""
    private, public = keys(tmp_path)
    key = channel.public_key(public if form == "as it is" else " ".join(public.split()))
    assert key is not None
    text = "STATE=RUNNING\n" * 30
    line = channel.message(Kind.STATE_VM, 3, 1, text, ok=True, key=key)
    cipher = zlib.decompress(base64.b64decode(line.split()[-1]))
    clear = b""
    for at in range(0, len(cipher), 128):
        block = tmp_path / "block"
        block.write_bytes(cipher[at : at + 128])
        clear += (
            System()
            .run(["openssl", "pkeyutl", "-decrypt", "-inkey", private, "-in", str(block)])
            .stdout.encode()
        )
    assert clear.decode() == text


def test_no_key_is_no_encryption() -> None:
    """An empty PUBKEY is what monitord.conf has by default."""
    assert channel.public_key("") is None
    assert channel.public_key(" \n") is None


@pytest.mark.parametrize(
    "text",
    [
        "/etc/one/key.pem",
        "-----BEGIN PUBLIC KEY----- AAAA -----END PUBLIC KEY-----",
        "-----BEGIN RSA PUBLIC KEY----- AAAA -----END RSA PUBLIC KEY-----",
        "-----BEGIN RSA PUBLIC KEY----- MIGJAoGB -----END RSA PUBLIC KEY-----",
    ],
)
def test_a_wrong_key_is_a_clear_error(text: str) -> None:
    """Messages are never sent in clear because a key could not be read."""
    with pytest.raises(ConfigError, match="PUBKEY"):
        channel.public_key(text)


def test_states_go_by_tcp_and_the_rest_by_udp() -> None:
    """A lost connection is seen, a lost datagram is not; big messages take the way that fits."""
    with socket.create_server(("127.0.0.1", 0)) as stream, socket.socket(type=2) as datagrams:
        port = stream.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        datagrams.settimeout(5)
        got: list[bytes] = []

        def listen() -> None:
            for _each in range(2):
                connection = stream.accept()[0]
                with connection, connection.makefile("rb") as file:
                    got.append(file.read())

        thread = threading.Thread(target=listen)
        thread.start()
        channel.deliver("127.0.0.1", port, Kind.MONITOR_VM, b"small\n")
        channel.deliver("127.0.0.1", port, Kind.STATE_VM, b"state\n")
        channel.deliver("127.0.0.1", port, Kind.MONITOR_VM, b"x" * 70_000)
        thread.join(5)
        assert datagrams.recv(100) == b"small\n"
        assert got == [b"state\n", b"x" * 70_000]


def test_a_dead_monitord_is_an_error_for_states() -> None:
    """The caller must know that a state was not delivered."""
    with socket.create_server(("127.0.0.1", 0)) as stream:
        port = stream.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        channel.deliver("127.0.0.1", port, Kind.STATE_VM, b"state\n")
