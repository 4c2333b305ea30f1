# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Exactly the frontend's key is let in; every other line of authorized_keys stays."""

import base64

import pytest

from cxm import names
from cxm.errors import UsageError
from cxm.setup import keys


def _blob(kind: str, seed: bytes) -> str:
    body = len(kind).to_bytes(4, "big") + kind.encode() + (32).to_bytes(4, "big") + seed * 32
    return base64.b64encode(body).decode()


ONE = f"ssh-ed25519 {_blob('ssh-ed25519', b'1')}"
TWO = f"ssh-ed25519 {_blob('ssh-ed25519', b'2')}"
OTHERS = f'# mine\nfrom="10.0.0.1" ssh-rsa {_blob("ssh-rsa", b"3")} me@home\nnot a key at all\n'


def test_key_is_let_in_with_restrictions_and_once() -> None:
    """The line forwards nothing, names the frontend, and a second run changes nothing."""
    key = keys.public_key(f"{ONE} oneadmin@frontend\n")
    once = keys.merge(OTHERS, key, "frontend")
    assert once == f"{OTHERS}restrict,pty {ONE} cxm-setup:frontend=frontend\n"
    assert keys.merge(once, key, "frontend") == once
    assert keys.lets_in(once, "frontend")
    assert not keys.lets_in(once, "front")


def test_new_key_of_a_frontend_replaces_its_old_one_only() -> None:
    """Another frontend's key stays."""
    first, second = keys.public_key(ONE), keys.public_key(TWO)
    text = keys.merge(keys.merge("", first, "a"), first, "b")
    text = keys.merge(text, second, "a")
    assert ONE not in text.splitlines()[0]
    assert keys.lets_in(text, "a")
    assert text.count("cxm-setup:frontend=a") == 1


def test_key_that_is_let_in_already_gets_no_second_line() -> None:
    """The first line that fits counts for sshd: ours would have no effect."""
    present = f"{OTHERS}{ONE} by hand\n"
    assert keys.merge(present, keys.public_key(ONE), "frontend") == present
    asleep = f"#{ONE} by hand\n"
    assert keys.lets_in(keys.merge(asleep, keys.public_key(ONE), "f"), "f")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 not-base64!",
        f"ssh-rsa {_blob('ssh-ed25519', b'1')}",
        f"ssh-dss {_blob('ssh-dss', b'1')}",
        f"{ONE}\n{TWO}",
        f'command="reboot" {ONE}',
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    """Neither options nor private keys nor damaged ones get into authorized_keys."""
    with pytest.raises(UsageError):
        keys.public_key(text)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\nb", 'a"', "x" * 300])
def test_frontend_is_named_by_a_host_name(name: str) -> None:
    """The name becomes a part of a line that sshd reads."""
    with pytest.raises(UsageError):
        names.host_name(name)
