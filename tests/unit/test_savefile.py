# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The check of a domain's saved memory."""

import io

import pytest

from cxm.config import GuestType
from cxm.errors import DataError
from cxm.xen.savefile import SaveFile, check
from tests.fakes.xen import saved

WHOLE = saved("what the guest knows")


@pytest.mark.parametrize("behind", [b"", b"an old tenant's data" * 50])
def test_a_complete_save(behind: bytes) -> None:
    """Its length is told, whatever lies behind it on the device, and the type it was."""
    assert check(io.BytesIO(WHOLE + behind)) == SaveFile(len(WHOLE), GuestType.PVH)


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_a_save_that_was_cut(length: int) -> None:
    """A save that ends anywhere before its end is never taken for a whole one."""
    with pytest.raises(DataError):
        check(io.BytesIO(WHOLE[:length]))


@pytest.mark.parametrize("at", [0, 33, 112, 136])
def test_a_damaged_head(at: int) -> None:
    """Magic numbers are checked."""
    with pytest.raises(DataError):
        check(io.BytesIO(WHOLE[:at] + b"\xee\xee" + WHOLE[at + 2 :]))


def test_an_unknown_type_is_none() -> None:
    """Without a type in its head, a save is still a save."""
    assert check(io.BytesIO(WHOLE.replace(b'"pvh"', b'"new"'))).guest_type is None
