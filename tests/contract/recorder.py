# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Drives an OpenNebula whose drivers only write down how they are called, and reads that back.

The same play was recorded from real OpenNebula (tests/data/oned-calls-*.json); the stand-in must
make the same calls.
"""

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from cxm.errors import CxmError
from lab.oned.cloud import Cloud, Network

HOST = "rechost"
FRONTEND = "fehost"
NETWORK_DRIVER = "recnet"
_HERE = os.path.dirname(os.path.abspath(__file__))
_RECORDING = os.path.join(_HERE, "recording")
_TM = (
    "clone", "ln", "mkimage", "mkswap", "context", "mvds", "cpds", "delete", "mv", "premigrate",
    "postmigrate", "failmigrate", "monitor",
)  # fmt: skip
_VMM = ("deploy", "shutdown", "cancel", "save", "restore", "migrate", "reboot", "reset", "poll")

Mark = Callable[[str], None]


def install(remotes: str, *, im: tuple[str, ...]) -> None:
    """Put the recording scripts into a remotes tree, as the drivers ``cxm``."""
    os.makedirs(os.path.join(remotes, "cxm"), exist_ok=True)
    shutil.copy(os.path.join(_RECORDING, "record"), os.path.join(remotes, "cxm", "action"))
    rows = [
        ("tm/cxm", _TM),
        ("vmm/cxm", _VMM),
        (os.path.dirname(im[0]), (os.path.basename(im[0]),)),
    ]
    rows += [(f"vnm/{name}", ("pre", "post", "clean")) for name in (NETWORK_DRIVER, "dummy")]
    for directory, names in rows:
        os.makedirs(os.path.join(remotes, directory), exist_ok=True)
        for name in names:
            path = os.path.join(remotes, directory, name)
            if os.path.lexists(path):
                os.unlink(path)
            os.symlink("../../cxm/action", path)


def tools(directory: str) -> str:
    """A directory for PATH with the recording ssh and scp, and an rsync that waits its turn."""
    os.makedirs(directory, exist_ok=True)
    for name in ("ssh", "scp", "rsync"):
        shutil.copy(os.path.join(_RECORDING, name), os.path.join(directory, name))
    return directory


@dataclass(frozen=True, slots=True)
class Notes:
    """What the recording scripts write, and where they are told how to answer."""

    directory: str

    def prepare(self) -> None:
        """Make the directories."""
        for name in ("reply", "fail"):
            os.makedirs(os.path.join(self.directory, name), exist_ok=True)

    def mark(self, text: str) -> None:
        """Write down what is about to be done."""
        with open(os.path.join(self.directory, "calls"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"mark": text}) + "\n")

    def fail(self, script: str, text: str | None) -> None:
        """Let a script, for example ``vmm.deploy``, fail with this text, or no longer."""
        path = os.path.join(self.directory, "fail", script)
        if text is None:
            os.unlink(path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)

    def entries(self) -> list[dict[str, Any]]:
        """All that was written, in its order."""
        with open(os.path.join(self.directory, "calls"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def template(name: str, *, old: bool, with_data: bool) -> str:
    """A VM with every kind of disk, a network interface, a context and odd characters."""
    data = 'DISK=[IMAGE="data"]\n' if with_data else ""
    volume = 'FORMAT="ext3"' if old else 'FS="ext3",FORMAT="raw"'
    larger = "" if old else ',SIZE="256"'
    return f"""NAME="web {name}"
CPU="0.5"
MEMORY="128"
VCPU="1"
OS=[KERNEL="/boot/vmlinuz",INITRD="/boot/initrd.img",ROOT="xvda",KERNEL_CMD="console=hvc0"]
DISK=[IMAGE="root"{larger}]
{data}DISK=[IMAGE="disc"]
DISK=[TYPE="fs",SIZE="10",{volume}]
DISK=[TYPE="swap",SIZE="8"]
NIC=[NETWORK="lan"]
CONTEXT=[GREETING="it's $NAME",NETWORK="YES"]
GRAPHICS=[TYPE="vnc",LISTEN="0.0.0.0",PORT="5900"]
RAW=[TYPE="xen",DATA="serial='pty'",VALIDATE="NO"]
XEN_TYPE="pvh"
"""


def prepare(cloud: Cloud, image_file: str) -> None:
    """Register what the play needs."""
    cloud.add_host(HOST)
    cloud.create_network(Network("lan", "xenbr0", "10.77.1.100", 10, NETWORK_DRIVER))
    for text in (
        'NAME="root"\nFSTYPE="ext4"\nLV_SIZE="200"\nSIZE="77"',
        'NAME="data"\nPERSISTENT="YES"\nTYPE="DATABLOCK"',
        'NAME="disc"\nTYPE="CDROM"',
    ):
        cloud.wait_image(cloud.register_image(image_file, text))
    cloud.wait_host(HOST)


def play(cloud: Cloud, notes: Notes, settle: Callable[[], None]) -> None:
    """Everything that a user may ask of a VM, with two failures on the way.

    ``settle`` waits for what oned does behind a user's back.
    """
    old = cloud.version < (5, 0)

    def step(name: str, action: Callable[[], None]) -> None:
        settle()
        notes.mark(name)
        action()

    def wait(vm: int, state: str) -> Callable[[], object]:
        return lambda: cloud.wait(vm, state)

    def do(name: str, vm: int, action: Callable[[int], None], state: str) -> None:
        step(name, lambda: action(vm))
        wait(vm, state)()

    def create(name: str, label: str, *, with_data: bool, state: str = "RUNNING") -> int:
        made: list[int] = []
        text = template(name, old=old, with_data=with_data)
        step(label, lambda: made.append(cloud.create_vm(text)))
        reach(cloud, made[0], state)
        return made[0]

    vm = create("one", "create", with_data=True)
    do("suspend", vm, cloud.suspend, "SUSPENDED")
    do("resume suspended", vm, cloud.resume, "RUNNING")
    do("poweroff", vm, cloud.poweroff, "POWEROFF")
    do("resume powered off", vm, cloud.resume, "RUNNING")
    do("stop", vm, cloud.stop, "STOPPED")
    do("resume stopped", vm, cloud.resume, "RUNNING")
    if not old:
        do("undeploy", vm, cloud.undeploy, "UNDEPLOYED")
        do("resume undeployed", vm, cloud.resume, "RUNNING")
    do("reboot", vm, cloud.reboot, "RUNNING")
    do("reset", vm, lambda number: cloud.reboot(number, hard=True), "RUNNING")
    do("terminate", vm, cloud.terminate, "DONE")

    notes.fail("vmm.deploy", error("the guest type pvh needs a kernel", cloud))
    vm = create(
        "two", "create, deploy fails", with_data=True, state="FAILED" if old else "BOOT_FAILURE"
    )
    notes.fail("vmm.deploy", None)
    do("retry", vm, cloud.retry, "RUNNING")
    do("delete running", vm, cloud.delete, "DONE")

    notes.fail("tm.clone", error("no space", cloud))
    vm = create(
        "three", "create, clone fails", with_data=False, state="FAILED" if old else "PROLOG_FAILURE"
    )
    notes.fail("tm.clone", None)
    do("delete failed", vm, cloud.delete, "DONE")

    vm = create("four", "create fourth", with_data=False)
    do("stop fourth", vm, cloud.stop, "STOPPED")
    do("delete stopped", vm, cloud.delete, "DONE")
    vm = create("five", "create fifth", with_data=False)
    do("poweroff fifth", vm, cloud.poweroff, "POWEROFF")
    do("delete powered off", vm, cloud.delete, "DONE")
    vm = create("six", "create sixth", with_data=False)
    do("terminate hard", vm, lambda number: cloud.terminate(number, hard=True), "DONE")
    step("end", lambda: None)


def reach(cloud: Cloud, vm: int, state: str) -> None:
    """Wait for a state, also for one that is a failure."""
    try:
        cloud.wait(vm, state)
    except CxmError:
        if cloud.vm(vm).state != state:
            raise


def error(text: str, cloud: Cloud) -> str:
    """What a script that fails says, so that this version reads ``text``."""
    if cloud.version.has_error_markers:
        return (
            f"ERROR: action: {text}\nERROR MESSAGE --8<------\n{text}\nERROR MESSAGE ------>8--\n"
        )
    return f"INFO: action: trying\n{text} \n"


# Normal form: what must be the same wherever and whenever the play was played.


@dataclass(frozen=True, slots=True)
class Names:
    """The installation's own words, to be replaced."""

    var: str
    remote: str
    image_store: str
    system_store: str


Call = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Played:
    """The play in its normal form."""

    steps: dict[str, list[Call]]
    shapes: dict[str, list[str]]  # of each kind of XML: all paths that occur in it

    def to_json(self, version: str) -> str:
        """The form of the files in tests/data, a call a line."""
        rows = []
        for step, calls in self.steps.items():
            inner = ",\n   ".join(json.dumps(call) for call in calls)
            rows.append(f"  {json.dumps(step)}: [\n   {inner}\n  ]")
        steps = ",\n".join(rows)
        shapes = json.dumps(self.shapes, indent=1)
        head = f'{{"version": {json.dumps(version)},'
        return f'{head}\n "steps": {{\n{steps}\n }},\n "shapes": {shapes}}}\n'


def recorded(path: str) -> Played:
    """What was recorded from a real OpenNebula."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    return Played(data["steps"], data["shapes"])


def normal(entries: list[dict[str, Any]], names: Names) -> Played:
    """The calls of the play by step, with the installation's own words replaced."""
    steps: dict[str, list[Call]] = {}
    shapes: dict[str, set[str]] = {}
    for entry in entries:
        if "mark" in entry:
            current = steps.setdefault(entry["mark"], [])
        elif steps:
            call = _call(entry, names, shapes)
            if call is not None:
                current.append(call)
    for name in ("prepare", "end"):
        steps.pop(name, None)
    return Played(steps, {name: sorted(paths) for name, paths in shapes.items()})


def _call(entry: Call, names: Names, shapes: dict[str, set[str]]) -> Call | None:
    if "stream" in entry:
        return {"stream": list(_stream(entry["stdin"], names)), **_elsewhere(entry["stream"])}
    if "ssh" in entry:
        words = [_word(word, names) for word in entry["ssh"]]
        return (
            None
            if words[-2:] == ["bash", "-s"] or re.search("/im/|cxm/poll", words[-1])
            else {"ssh": words}
        )
    path = _word(entry.get("path", "/im/"), names)
    if "/im/" in path or path.endswith(("tm/cxm/monitor", "vmm/cxm/poll")):
        return None  # by timers, not by the play
    argv = [_word(word, names) for word in entry["argv"]]
    if "/tm/" in path:
        stores = {names.image_store: "IMAGES", names.system_store: "SYSTEM"}
        argv[-1] = stores.get(argv[-1], argv[-1])
    found: Call = {"script": path, "argv": argv, "cwd": _word(entry["cwd"], names)}
    if entry["host"]:
        found |= {"cwd": "HOME", **_elsewhere(entry["host"])}
    if entry["stdin"] and "/vnm/" not in path:
        found["stdin"] = _shape(entry["stdin"], names, shapes)
    return found


def _elsewhere(host: str) -> Call:
    """Which host it is, where it is not the one that most plays have."""
    return {} if host == HOST else {"host": host}


def _word(word: str, names: Names) -> str:
    word = word.replace(names.remote, "REMOTE").replace(names.var, "VAR")
    word = re.sub(r"[0-9a-f]{32}", "IMAGE", word)
    word = re.sub(rf"datastores/{names.image_store}(?=/|$)", "datastores/IMAGES", word)
    word = re.sub(rf"datastores/{names.system_store}(?=/|$)", "datastores/SYSTEM", word)
    return re.sub(r"[A-Za-z0-9+/=]{200,}", "BASE64", word)


def _stream(text: str, names: Names) -> Iterator[str]:
    """The commands of a stream; inputs by their first words."""
    inside = False
    for line in text.splitlines():
        if line == "EOT":
            inside = False
            yield line
        elif inside:
            continue
        else:
            yield _word(line, names)
            inside = "cat << " in line


def _shape(text: str, names: Names, shapes: dict[str, set[str]]) -> str | list[str]:
    """What an input is: the kind of an XML, or the lines of a text."""
    if not text.lstrip().startswith("<"):
        try:
            text = base64.b64decode(text, validate=True).decode()
        except ValueError:
            return [_word(line, names) for line in text.splitlines()]
    if not text.lstrip().startswith("<"):
        return [_word(line, names) for line in text.splitlines()]
    root = ET.fromstring(text)
    shapes.setdefault(root.tag, set()).update(_paths(root, root.tag))
    return root.tag


def _paths(element: ET.Element, path: str) -> Iterator[str]:
    yield path
    for child in element:
        yield from _paths(child, f"{path}/{child.tag}")
