# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The reading of xl's output."""

import pytest

from cxm.errors import DataError
from cxm.xen import xl

_HEAD = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    "   UUID                            Reason-Code\tSecurity Label\n"
)
_UUID = "0b5ff1b9-a6ba-8c44-9a44-00000000002a"


def _row(name: str, state: str, reason: str = "-", *, domid: int = 3) -> str:
    return (
        f"{name:<40} {domid:5} {104:5} {1:5}     {state}  {1.5:8.1f} {_UUID} {reason:>8}      -\n"
    )


def test_reads_one_domain() -> None:
    """Every column of a running domain is read."""
    (domain,) = xl.parse_list(_HEAD + _row("one-42", "-b----"))
    assert domain == xl.Domain("one-42", 3, 104, 1, "-b----", 1.5, _UUID, None)
    assert domain.alive
    assert not domain.paused


@pytest.mark.parametrize("name", ["a" * 128, "(null)", "with  two blanks", "7", "--3.vm.home.net"])
def test_reads_any_name(name: str) -> None:
    """Long names and other people's odd names are read whole."""
    (domain,) = xl.parse_list(_HEAD + _row(name, "r-----"))
    assert domain.name == name


def test_tells_how_a_domain_ended() -> None:
    """Off by the guest, crashed, rebooting and dying are told apart."""
    text = _HEAD + "".join(
        (
            _row("off", "---s--", "0"),
            _row("crashed", "---sc-", "3"),
            _row("reboots", "---sr-", "1"),
            _row("dying", "-----d"),
        )
    )
    off, crashed, reboots, dying = xl.parse_list(text)
    assert off.powered_off
    assert not off.alive
    assert crashed.crashed
    assert not (reboots.crashed or reboots.powered_off or reboots.alive)
    assert dying.dying
    assert not dying.alive


@pytest.mark.parametrize("name", ["one-42--incoming", "one-42--migratedaway"])
def test_half_of_a_migration_is_not_alive(name: str) -> None:
    """A domain under a name of a migration never counts as running."""
    (domain,) = xl.parse_list(_HEAD + _row(name, "r-----"))
    assert not domain.alive


@pytest.mark.parametrize("text", ["", "xl: cannot connect", _HEAD + "garbage\n"])
def test_refuses_what_it_cannot_read(text: str) -> None:
    """Output of another shape is an error, never an empty list."""
    with pytest.raises(DataError):
        xl.parse_list(text)
