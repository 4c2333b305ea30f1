# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how several machines are asked at the same time, so that a dozen cost the time of one."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from cxm.errors import CxmError

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


def ask(
    names: Iterable[_K], question: Callable[[_K], _T], *, at_once: int
) -> dict[_K, _T | CxmError]:
    """What each of them answers, in their order, or why one does not."""

    def one(name: _K) -> _T | CxmError:
        try:
            return question(name)
        except CxmError as error:
            return error

    asked = list(names)
    if len(asked) <= 1:
        return {name: one(name) for name in asked}
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - one alone needs none

    with ThreadPoolExecutor(min(len(asked), at_once)) as pool:
        return dict(zip(asked, pool.map(one, asked), strict=True))
