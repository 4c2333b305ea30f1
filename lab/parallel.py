# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how something is done to several machines at the same time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def in_parallel(work: Sequence[Callable[[], object]]) -> None:
    """Run functions side by side; raise the first failure when all have ended."""
    if not work:
        return
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        futures = [pool.submit(task) for task in work]
    for future in futures:
        future.result()
