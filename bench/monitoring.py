# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Runs on a node, fed to its Python: the CPU seconds of many calls of a command in their cadence.

Arguments: number of calls, seconds in which they are spread, and the command. Prints JSON.
"""

import json
import os
import sys
import time


def spread(argv: list[str], calls: int, interval_s: float) -> dict[str, float]:
    """Call a command again and again; CPU seconds of it and of all that it starts."""
    cpu_s = 0.0
    begin = time.monotonic()
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    for number in range(calls):
        time.sleep(max(0.0, begin + number * interval_s / calls - time.monotonic()))
        pid = os.posix_spawnp(argv[0], argv, dict(os.environ), file_actions=nowhere)
        _pid, status, used = os.wait4(pid, 0)
        if status:
            raise SystemExit(f"{argv[0]} ended with {os.waitstatus_to_exitcode(status)}")
        cpu_s += used.ru_utime + used.ru_stime
    return {"cpu_s": cpu_s, "took_s": time.monotonic() - begin}


if __name__ == "__main__":
    print(json.dumps(spread(sys.argv[3:], int(sys.argv[1]), float(sys.argv[2]))))
