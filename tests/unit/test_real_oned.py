# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How the lab drives a real oned through its API, by version, and what it reads of a VM."""

import json
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest

from cxm.run import Result, System
from lab.oned.real import RealOned, view_of_vm

_HOSTS = "<HOST_POOL><HOST><ID>7</ID><NAME>node2</NAME><STATE>2</STATE></HOST></HOST_POOL>"


class _Oned(System):
    """Answers calls of oned's API and keeps them; runs nothing."""

    def __init__(self, version: str) -> None:
        self.calls: list[list[object]] = []
        self._answers = {"one.system.version": version, "one.hostpool.info": _HOSTS}

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """See :class:`cxm.run.Runner`."""
        asked = json.loads(stdin or b"{}")
        self.calls.append([asked["method"], *asked["params"][1:]])
        answer = self._answers.get(asked["method"], 0)
        return Result(tuple(argv), ok[0], json.dumps([True, answer, 0]), "", timeout_s)


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("3.8.5", []),
        ("4.4.1", [False]),
        ("4.14.2", [False, -1]),
        ("5.10.5", [False, -1, 0]),
        ("7.4.0", [False, -1, 0]),
    ],
)
def test_a_migration_is_asked_for_as_the_version_wants_it(version: str, more: list[object]) -> None:
    """By the host's id; the parameters that came later are their defaults."""
    oned = _Oned(version)
    cloud = RealOned(oned, prefix=(), url="http://oned/RPC2", session="a:b")
    cloud.migrate(3, "node2", live=True)
    assert oned.calls[-1] == ["one.vm.migrate", 3, 7, True, *more]


def _vm(*ended: int, error: str = "") -> ET.Element:
    rows = "".join(
        f"<HISTORY><SEQ>{number}</SEQ><HOSTNAME>node{number}</HOSTNAME><ETIME>{when}</ETIME>"
        "</HISTORY>"
        for number, when in enumerate(ended)
    )
    return ET.fromstring(
        f"<VM><ID>3</ID><NAME>web</NAME><STATE>3</STATE><LCM_STATE>3</LCM_STATE>{error}"
        f"<HISTORY_RECORDS>{rows}</HISTORY_RECORDS></VM>"
    )


def test_a_vm_moves_as_long_as_its_last_host_but_one_has_it() -> None:
    """A moment before the state changes the new record is there, the old one still open."""
    assert not view_of_vm(_vm(0)).moving
    assert view_of_vm(_vm(0, 0)).moving
    view = view_of_vm(_vm(1, 1, 0))
    assert (view.moving, view.host, view.sequence) == (False, "node2", 2)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("", ""),
        ("<USER_TEMPLATE><ERROR>Thu : no</ERROR></USER_TEMPLATE>", "Thu : no"),
        (
            "<TEMPLATE><ERROR><MESSAGE>no</MESSAGE><TIMESTAMP>Thu</TIMESTAMP></ERROR></TEMPLATE>",
            "Thu : no",
        ),
    ],
)
def test_the_reason_of_a_failure_is_read_in_every_version(error: str, text: str) -> None:
    """3.8 keeps it as two values (recorded)."""
    assert view_of_vm(_vm(0, error=error)).error == text
