# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is asked of a running Corosync; its configuration is :mod:`cxm.setup.corosync`'s."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cxm.run import Runner

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 30.0
_NAME: Final = re.compile(r"^nodelist\.node\.\d+\.name \(str\) = (\S+)$", re.MULTILINE)
_STATUS: Final = re.compile(r"^runtime\.members\.(\d+)\.status \(str\) = joined$", re.MULTILINE)
_VERSION: Final = re.compile(
    r"^runtime\.members\.(\d+)\.config_version \(u64\) = (\d+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Running:
    """What a running Corosync has in mind."""

    members: frozenset[str]  # the nodes that it has loaded
    versions: Mapping[int, int]  # number of a node that is there -> config_version it has loaded
    heard: frozenset[int]  # the numbers of all that are there


def running(runner: Runner) -> Running:
    """What Corosync on this node has loaded, and sees of the others; raises CommandError."""
    text = runner.run(["corosync-cmapctl"], timeout_s=_TIMEOUT_S).stdout
    # What one that has left had loaded is kept.
    there = frozenset(int(number) for number in _STATUS.findall(text))
    found = {int(number): int(version) for number, version in _VERSION.findall(text)}
    versions = {number: version for number, version in found.items() if number in there}
    return Running(frozenset(_NAME.findall(text)), versions, there)


def go_on_alone(runner: Runner) -> None:
    """Let this node of a pair have quorum though it has not seen the other since it started.

    That is for one moment only: after its next start it waits again (``wait_for_all``). Raises
    CommandError.
    """
    argv = ["corosync-cmapctl", "-s", "quorum.cancel_wait_for_all", "u8", "1"]
    runner.run(argv, timeout_s=_TIMEOUT_S)
    _log.info("this node waits no more for the other")
