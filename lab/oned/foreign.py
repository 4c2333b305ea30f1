# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what OpenNebula's own remotes do for our drivers, in words of our own.

A real installation brings these scripts; the stand-in has none. Only what the protocol asks of
them is here: network drivers that have nothing to do on a plain bridge, and the scripts that run
our probes and our monitoring client on a host.
"""

import os

from lab.oned.profiles import Profile

_HEAD = """#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
# Part of the lab's stand-in for OpenNebula, see lab/oned/foreign.py.
"""
# A stream's commands follow on the input of scripts that are given none: it must not be read.
_NETWORK = _HEAD + "exit 0\n"
_PROBES = (
    _HEAD
    + """
cd "$(dirname "$0")/$1.d" || exit 1
collected=$(
    for probe in *; do
        [ -x "$probe" ] && [ -f "$probe" ] || continue
        ./"$probe" "$@" || exit $?
    done
)
code=$?
printf '%s\\n' "$collected" {flat}
exit $code
"""
)
_CLIENT = (
    _HEAD
    + """
given=$(cat | tr '\\n' ' ')
cd "$(dirname "$0")/$1.d" || exit 1
for client in *; do
    [ -x "$client" ] && [ -f "$client" ] || continue
    said=$(printf '%s\\n' "$given" | ./"$client" "$@" 2>&1)
    code=$?
    if [ $code -ne 0 ]; then
        echo "Error executing $client: $said" >&2
        exit $code
    fi
    printf '%s\\n' "$said" | tr '\\n' ' '
done
"""
)
_STOP = (
    _HEAD
    + """
cd "$(dirname "$0")/$1.d" || exit 1
for client in *_control.sh; do
    ./"$client" stop "$@" </dev/null || exit $?
done
"""
)


def put(remotes: str, profile: Profile) -> None:
    """Write the scripts of this version into a remotes tree."""
    for network in ("dummy", "bridge"):
        for action in ("pre", "post", "clean"):
            _write(os.path.join(remotes, "vnm", network, action), _NETWORK)
    image = os.path.join(remotes, "im")
    if profile.monitord:
        _write(os.path.join(image, "run_monitord_client"), _CLIENT)
        _write(os.path.join(image, "stop_monitord_client"), _STOP)
    else:
        flat = "| tr '\\n' ' '" if profile.polls_vms else ""
        _write(os.path.join(image, "run_probes"), _PROBES.replace("{flat}", flat))
    if profile.version >= (4, 4):
        with open(os.path.join(remotes, "VERSION"), "w", encoding="ascii") as file:
            file.write(f"{profile.version}\n")


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)  # noqa: S103 - a script
