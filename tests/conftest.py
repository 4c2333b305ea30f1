# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What all tests share."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a parameter's bytes by their place: what is packed holds the time, in a name too.

    Two processes that run the tests then call the same test by the same name.
    """
    return argname if isinstance(val, bytes | bytearray) else None
