# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The root helper's boundary: requests, arguments, replies, and who may ask."""

import importlib
import inspect
import io
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxm import config, wire
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UsageError
from cxm.names import VmId
from cxm.node import helper
from cxm.node.client import FAILURE_CODE
from cxm.node.machine import Caller, Machine
from cxm.node.verbs import VERBS
from tests.fakes.call import ask, request, send, typed
from tests.fakes.machine import CLOUD, FakeNode, Outcome

DESIGN = Path(__file__).parents[2] / "docs" / "design" / "0002-node-protocol.md"
WRITE: dict[str, Any] = {
    "vm": 42,
    "disk": 0,
    "dir": "/var/lib/one/datastores/0/42",
    "name": "user-vm.home.net",
    "size_mib": 8,
    "content": "raw",
    "fstype": None,
    "replace": False,
}


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node of the cloud."""
    return FakeNode(str(tmp_path / "node"))


@pytest.fixture
def machine(node: FakeNode) -> Machine:
    """The same, as verbs see it."""
    return node.machine()


class TestTable:
    """The table of verbs."""

    @pytest.mark.parametrize("verb", VERBS)
    def test_function_takes_what_the_table_says(self, verb: str) -> None:
        """Each row names a function that has exactly the row's arguments, by keyword."""
        row = VERBS[verb]
        function = getattr(importlib.import_module(f"cxm.node.{row.module}"), row.function)
        parameters = list(inspect.signature(function).parameters.values())
        assert parameters[0].name == "call"
        by_keyword = {each.name for each in parameters[1:]}
        assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters[1:])
        assert by_keyword == {argument.parameter for argument, _null in row.arguments().values()}

    def test_contract_names_every_verb(self) -> None:
        """The design note lists the verbs that there are."""
        rows = re.findall(r"^\| ([a-z, -]+) \|", DESIGN.read_text(encoding="utf-8"), re.MULTILINE)
        listed = {verb for row in rows for verb in row.split(", ") if verb != "verb"}
        assert listed == {verb for verb, row in VERBS.items() if row.request}


class TestRequests:
    """What is refused before anything is done."""

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("vm", "42", "vm: '42' is not a whole number"),
            ("vm", -1, "vm: -1 is not a whole number"),
            ("vm", True, "vm: True is not a whole number"),
            ("vm", 1 << 32, "vm: 4294967296 is not a whole number"),
            ("vm", None, "vm: None is not a whole number"),
            ("vm", 4, "'/var/lib/one/datastores/0/42' is not the directory of VM 4"),
            ("disk", "checkpoint", "disk: 'checkpoint' is not a whole number"),
            ("disk", 1.0, "disk: 1.0 is not a whole number"),
            ("dir", "/var/lib/one/../42", "dir: '/var/lib/one/../42' is not the absolute, normal"),
            ("dir", "42", "dir: '42' is not the absolute"),
            ("dir", "/a/42/", "dir: '/a/42/' is not the absolute"),
            ("dir", "//a/42", "dir: '//a/42' is not the absolute"),
            ("dir", "/a/\0/42", "dir: .* is not the absolute"),
            ("dir", None, "dir: None is not a text"),
            ("name", "--3.vm.home.net", "name: '--3.vm.home.net' cannot name a domain"),
            ("name", "", "name: '' cannot name a domain"),
            ("name", "a;b", "name: 'a;b' cannot name a domain"),
            ("size_mib", 0, "size_mib: 0 is not a whole number"),
            ("size_mib", 1 << 40, "size_mib: .* is not a whole number"),
            ("content", "qcow2", "content: 'qcow2' is none of raw, gzip"),
            ("content", ["raw"], "is none of raw"),
            ("fstype", "ext4 -o suid", "fstype: 'ext4 -o suid' is not a file system"),
            ("fstype", "ntfs", "fstype: 'ntfs' is not a file system"),
            ("replace", 1, "replace: 1 is neither true nor false"),
        ],
    )
    def test_ill_typed(self, node: FakeNode, name: str, value: Any, says: str) -> None:
        """A value of the wrong kind is named; nothing is run."""
        with pytest.raises(UsageError, match=says):
            ask(node.machine(), "disk-write", **(WRITE | {name: value}))
        assert node.ran == []

    def test_missing_and_unknown(self, machine: Machine) -> None:
        """Arguments are these, no fewer and no more."""
        with pytest.raises(UsageError, match="disk-write: the argument 'replace' is missing"):
            ask(machine, "disk-write", **{key: WRITE[key] for key in WRITE if key != "replace"})
        with pytest.raises(UsageError, match="disk-write: the argument 'force' is unknown"):
            ask(machine, "disk-write", **WRITE, force=True)

    def test_unknown_verb(self, machine: Machine) -> None:
        """What is not in the table is not done."""
        for verb in ("disk-format", "../disk-write", ""):
            with pytest.raises(UsageError, match="is not a verb of cxm's helper"):
                ask(machine, verb)

    def test_other_version(self, machine: Machine) -> None:
        """Both versions and the fix are named."""
        with pytest.raises(
            RefusedError, match=r"node1 speaks version 1 .* version 7 \(cxm 9\.9\)"
        ) as caught:
            send(machine, "vg-usage", request({}, api=7, version="9.9"))
        assert "same version" in str(caught.value.hint)

    def test_foreign_cloud(self, machine: Machine) -> None:
        """A cloud that the node was not told to serve gets nothing."""
        with pytest.raises(RefusedError, match="does not serve the cloud 'othercloud'"):
            send(machine, "vg-usage", request({}, cloud="othercloud"))

    @pytest.mark.parametrize("cloud", ["", None, 5, "../../x", "A" * 12])
    def test_no_cloud(self, machine: Machine, cloud: Any) -> None:
        """What cannot be a cloud is not one."""
        with pytest.raises(UsageError, match="is not a cloud id"):
            send(machine, "vg-usage", request({}, cloud=cloud))

    @pytest.mark.parametrize("line", [b"", b"{", b"[]\n", b"hello\n", b"\xff\xfe\n", b"{}"])
    def test_no_request(self, machine: Machine, line: bytes) -> None:
        """Anything but a request is answered as such."""
        with pytest.raises(DataError, match=r"not a message of cxm|ended before"):
            send(machine, "vg-usage", line)

    def test_settings_that_cannot_be_read(self, machine: Machine) -> None:
        """A node whose cxmrc is wrong says so in the form that the caller can read."""
        refusal = CxmError("the settings are wrong")
        for verb in ("vg-usage", "disk-read"):
            out = io.BytesIO()
            line = io.BytesIO(request({"vm": 1, "disk": 0, "as": "raw", "level": None}))
            assert helper.serve(verb, line, out, machine, refusal=refusal) == FAILURE_CODE
            assert b"the settings are wrong" in out.getvalue()
            assert out.getvalue().startswith(b"{" if verb == "vg-usage" else b"R")


class TestReplies:
    """What the caller gets."""

    def test_codes(self, machine: Machine) -> None:
        """0 with a result, 10 with a failure."""
        out = io.BytesIO()
        assert helper.serve("vg-usage", io.BytesIO(request({})), out, machine) == 0
        assert wire.parse_reply(out.getvalue())[0]["vg"] == "LVM_XEN"
        assert helper.serve("vg-usage", io.BytesIO(b""), io.BytesIO(), machine) == 10

    def test_failure_names_the_node_once(self, node: FakeNode) -> None:
        """The sentence begins with the node's name."""
        node.has_vg = False
        with pytest.raises(CxmError) as caught:
            ask(node.machine(), "vg-usage")
        assert caught.value.message == "node1: the volume group LVM_XEN does not exist"

    def test_log_of_a_failure_holds_changes_only(self, node: FakeNode) -> None:
        """What was undone has been done; the failure itself stands in its own place."""
        out = io.BytesIO()
        node.model("lvchange", lambda _argv, _input: Outcome(stderr="no", code=5))
        line = typed(
            request(WRITE | {"dir": node.path("datastores", "0", "42")})
            + b"".join(wire.encode([wire.Section("disk.0", {}), b"x"]))
        )
        assert helper.serve("disk-write", line, out, node.machine()) == FAILURE_CODE
        assert json.loads(out.getvalue())["log"] == [
            "created volume lv-one-42-0 (8 MiB) in LVM_XEN",
            "removed volume lv-one-42-0 from LVM_XEN",
        ]

    def test_error_of_the_system(self, node: FakeNode) -> None:
        """A full disk or a missing right is a sentence with the path, not a traceback."""
        machine = replace(node.machine(), run_dir="/proc/nowhere")
        with pytest.raises(
            CxmError, match=r"node1: vm-volumes: No such file or directory: '?/proc"
        ):
            ask(machine, "vm-volumes", vm=1)

    def test_defect(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        """A defect is called one, and its traceback is in the node's log."""
        node.model("lvm", lambda _argv, _input: None)  # type: ignore[arg-type,return-value]
        with caplog.at_level(logging.DEBUG, "cxm"), pytest.raises(CxmError) as caught:
            ask(node.machine(), "vg-usage")
        assert "vg-usage failed unexpectedly: AttributeError" in caught.value.message
        assert "defect of cxm" in str(caught.value.hint)
        assert any(record.exc_info for record in caplog.records)

    def test_caller_that_has_gone(self, machine: Machine) -> None:
        """A reply that nobody takes is no traceback."""

        class Gone(io.BytesIO):
            def write(self, _data: Any) -> int:
                raise BrokenPipeError

        code = helper.serve("vg-usage", io.BytesIO(request({})), Gone(), machine)
        assert code == FAILURE_CODE

    def test_slow_reader(self, machine: Machine) -> None:
        """An output that takes a few bytes at a time gets all of them."""

        class Narrow(io.BytesIO):
            def write(self, data: Any) -> int:
                return super().write(bytes(data[:7]))

        out = Narrow()
        assert helper.serve("vg-usage", io.BytesIO(request({})), out, machine) == 0
        assert wire.parse_reply(out.getvalue())[0]["free_mib"] == 1024

    def test_busy_vm(self, node: FakeNode) -> None:
        """A VM that another action works on is not touched; the sentence says so."""
        machine = node.machine()

        class Busy(Machine):
            def vm_lock(self, cloud: Any, vm: Any, *, timeout_s: float = 0.0) -> Any:
                return super().vm_lock(cloud, vm, timeout_s=0.0)

        busy = Busy(**{name: getattr(machine, name) for name in Machine.__dataclass_fields__})
        with machine.vm_lock(CLOUD, VmId(42)):
            with pytest.raises(CxmError, match="vm-cloudone1-42"):
                ask(busy, "vm-volumes", vm=42)
            assert ask(busy, "vm-volumes", vm=4).result["volumes"] == []
        assert ask(busy, "vm-volumes", vm=42).result["volumes"] == []


class TestCaller:
    """Whose files a verb writes."""

    def test_sudo_tells(self) -> None:
        """The word of sudo counts, both numbers or none."""
        assert helper._caller({"SUDO_UID": "9869", "SUDO_GID": "9870"}) == Caller(9869, 9870)
        for environ in ({}, {"SUDO_UID": "9869"}, {"SUDO_UID": "x", "SUDO_GID": "0"}):
            assert helper._caller(environ) == helper._caller({})

    def test_effective_user_comes_back(self, machine: Machine) -> None:
        """After the block, and after a failure in it, everything is as before."""
        with pytest.raises(ValueError, match="inside"), machine.as_caller():
            raise ValueError("inside")
        with machine.as_caller():
            pass


def test_what_is_ignored_of_the_settings_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With each verb about a VM; monitoring would repeat it every few seconds."""
    with caplog.at_level(logging.DEBUG, "cxm"):
        for verb in ("observe", "vg-usage", "nonsense"):
            helper._warned(config.node("XPATH=/bin/x\n", "cxmrc"), verb)
        assert caplog.records == []
        read = config.node("XPATH=/bin/x\nVG_NAME=x\n", "cxmrc")
        assert helper._warned(read, "domain-start").vg_name == "x"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "XPATH is obsolete and ignored" in caplog.text


def test_wrong_command_line() -> None:
    """The helper takes one verb, and no argument of any other kind."""
    for argv in ([], ["vg-usage", "--help"]):
        assert helper.main(argv) == UsageError.code


def test_command_error_keeps_its_kind(node: FakeNode) -> None:
    """A caller can tell kinds of failures apart."""
    node.model("lvm", lambda _argv, _input: Outcome(stderr="broken", code=5))
    with pytest.raises(CommandError, match=r"node1: .*broken"):
        ask(node.machine(), "vg-usage")
