# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the network step ``post``, where OpenNebula's own driver has died before it (5.10 to 7.4).

It is what gives a VM its security groups on the host that it has come to. Run again it does the
same again: oned's driver itself runs it after each start and each migration.
"""

import base64
import re
from typing import Final

from cxm import run
from cxm.errors import DataError
from cxm.one import xml
from cxm.one.version import OneVersion
from cxm.run import Runner

SINCE: Final = OneVersion(5, 10)  # before, the driver does not die
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_POST_S: Final = 60.0


def post(runner: Runner, remotes: str, text: str, host: str) -> None:
    """Run the step for a VM on a host, as oned's driver would; raises CxmError.

    ``text`` is oned's document of the VM, ``remotes`` where the host's scripts are.
    """
    vm = xml.parse(text, "VM")
    found = [nic.findtext("VN_MAD") or "" for nic in vm.findall("TEMPLATE/NIC")]
    deploy_id = xml.text_of(vm, "DEPLOY_ID")
    for driver in dict.fromkeys(filter(None, found)):
        if not _NAME.match(driver):
            raise DataError(f"a network of the VM has a driver of a strange name: {driver!r}")
        script = f"{remotes}/vnm/{driver}/post"
        argv = run.ssh(host, [script, deploy_id, host])
        runner.run(argv, stdin=base64.b64encode(text.encode()), timeout_s=_POST_S)
