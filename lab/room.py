# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what this machine can still give: memory and disk."""

import os
import shutil


def memory_mib() -> int:
    """The memory that a new program could take."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return 0


def disk_mib(path: str) -> int:
    """The free disk at ``path``; 0 when there is no such place."""
    try:
        return shutil.disk_usage(path).free >> 20
    except OSError:
        return 0


def is_memory(path: str) -> bool:
    """Whether what is written to ``path`` stays in memory (tmpfs)."""
    wanted = os.path.realpath(path)
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return any(line.split()[1:3] == [wanted, "tmpfs"] for line in file)
