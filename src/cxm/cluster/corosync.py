# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is asked of a running Corosync; its configuration is :mod:`cxm.setup.corosync`'s."""

import logging
from typing import Final

from cxm.run import Runner

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 30.0


def go_on_alone(runner: Runner) -> None:
    """Let this node of a pair have quorum though it has not seen the other since it started.

    That is for one moment only: after its next start it waits again (``wait_for_all``). Raises
    CommandError.
    """
    argv = ["corosync-cmapctl", "-s", "quorum.cancel_wait_for_all", "u8", "1"]
    runner.run(argv, timeout_s=_TIMEOUT_S)
    _log.info("this node waits no more for the other")
