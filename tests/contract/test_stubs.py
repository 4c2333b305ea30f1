# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The stubs as processes, from a tree as OpenNebula copies it: what oned reads, by version."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxm import config
from cxm.one.action import ACTIONS
from tests.fakes.rpc import oned_of

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "one"
PYTHON = "/usr/bin/python3"
DRIVERS = {"tm": ("cxm", "cxm_local"), "vmm": ("cxm",)}
VERSIONS = ("3.8", "5.10", "6.10", "7.4")

# Stands in for ssh: each host answers in its own way; what it was asked is written down.
SSH = """#!/usr/bin/python3
import json, os, sys, time
host = sys.argv[sys.argv.index("--") - 1]
record = {record!r}
def end(code, text):
    sys.stderr.write(text + "\\n")
    sys.exit(code)
if host == "dead":
    end(255, "ssh: connect to host dead port 22: No route to host")
if host == "locked":
    end(255, "oneadmin@locked: Permission denied (publickey,password).")
if host == "bare":
    end(1, "sudo: /usr/lib/cxm/cxm-helper: command not found")
line = sys.stdin.buffer.readline()
if host == "cut":
    end(255, "Connection to cut closed by remote host.")
rest = sys.stdin.buffer.read()
with open(record, "a") as file:
    asked = {{"argv": sys.argv[1:], "request": json.loads(line), "length": len(rest)}}
    file.write(json.dumps(asked) + "\\n")
if host == "slow":
    with open(record + ".slow", "w"):
        time.sleep(60)
if host == "full":
    error = {{"type": "RefusedError", "message": "full: no space", "hint": "make some"}}
    print(json.dumps({{"ok": False, "error": error, "log": ["looked"]}}))
    sys.exit(10)
result = {{"used_mib": 4, "free_mib": 6, "total_mib": 10}}
print(json.dumps({{"ok": True, "result": result, "log": ["created volume lv-one-42-0"]}}))
"""


@dataclass
class Frontend:
    """A frontend of some version, with stubs and package installed, and a stand-in for ssh."""

    root: Path
    version: str

    @property
    def remotes(self) -> Path:
        return self.root / "var" / "remotes"

    def run(
        self, kind: str, driver: str, action: str, *argv: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a stub as oned's driver does."""
        return subprocess.run(
            [self.remotes / kind / driver / action, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd="/",
            env=self.environment(),
        )

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.root), "PATH": "/usr/bin:/bin", "PYTHONPATH": "/nowhere"}

    def asked(self) -> list[dict[str, object]]:
        """What the hosts were asked."""
        record = self.root / "asked"
        if not record.exists():
            return []
        return [json.loads(line) for line in record.read_text().splitlines()]

    def shown(self, ended: subprocess.CompletedProcess[str]) -> str:
        """The error that oned of this version shows for what a script left on its error output."""
        text = ended.stderr
        if self.version in ("3.8", "5.10"):
            found = re.findall(
                r"^ERROR MESSAGE --8<------\n(.*?)^ERROR MESSAGE ------>8--$",
                text,
                re.DOTALL | re.MULTILINE,
            )
            return found[-1].strip() if found else "-"
        if self.version == "6.10":
            return text.strip().replace("\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        return "".join(line for line in lines if not re.match(r"(ERROR|INFO|WARN|DEBUG):\s+", line))


def _copy(source: Path, target: Path) -> None:
    """Copy as OpenNebula copies its remotes to hosts."""
    target.mkdir(parents=True)
    subprocess.run(["rsync", "-LRaz", "--delete", ".", str(target)], cwd=source, check=True)


def install(root: Path, version: str) -> Frontend:
    """A frontend with everything in place."""
    made = Frontend(root, version)
    _copy(ROOT / "remotes", made.remotes)
    packages = root / "python"
    shutil.copytree(
        ROOT / "src" / "cxm", packages / "cxm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for stub in made.remotes.rglob("*"):
        if stub.is_file() and os.access(stub, os.X_OK):
            stub.write_text(stub.read_text().replace("/usr/lib/cxm/python", str(packages)))
    _put_ssh(packages / "cxm" / "run.py", root)
    settings = config.sample(config.FrontendConfig, {"CLOUD_ID": "cloudone1"})
    (made.remotes / "cxmrc").write_text(settings)
    if version != "3.8":
        (made.remotes / "VERSION").write_text(f"{version}.1\n")
    (root / ".one").mkdir()
    (root / ".one" / "one_auth").write_text("oneadmin:secret\n")
    (root / "image").write_bytes(b"\xfa".ljust(4096, b"\x90"))
    return made


def _put_ssh(run_module: Path, root: Path) -> None:
    """Put the stand-in for ssh before the real one on the path of all commands."""
    (root / "bin").mkdir()
    ssh = root / "bin" / "ssh"
    ssh.write_text(SSH.format(record=str(root / "asked")))
    ssh.chmod(0o755)
    text = run_module.read_text()
    assert '_PATH = "' in text
    run_module.write_text(text.replace('_PATH = "', f'_PATH = "{root / "bin"}:'))


@pytest.fixture
def frontend(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    """A frontend of the version that the test names, and its oned."""
    version = getattr(request, "param", "7.4")
    made = install(tmp_path, version)
    records = {
        ("one.vm.info", 42): (DATA / f"vm-{version}.xml").read_text(),
        ("one.image.info", 7): (DATA / f"image-{version}.xml").read_text(),
    }
    with oned_of(records) as port:
        (tmp_path / "var" / "config").write_text(f"PORT={port}\nHOSTNAME=front\n")
        yield made


def place(host: str, name: str = "disk.0") -> str:
    """A disk of VM 42 on a host."""
    return f"{host}:/var/lib/one/datastores/0/42/{name}"


def clone(frontend: Frontend, host: str, driver: str = "cxm") -> subprocess.CompletedProcess[str]:
    """Clone the image to a host."""
    source = f"front:{frontend.root / 'image'}"
    return frontend.run("tm", driver, "clone", source, place(host), "42", "1")


# 5.10 wants of a driver what 3.8 does, but for its input.
_ALL = [pytest.param(each, marks=[pytest.mark.extensive] * (each == "5.10")) for each in VERSIONS]
every_version = pytest.mark.parametrize("frontend", _ALL, indirect=True)


# --- the tree -----------------------------------------------------------------------------------


def test_stubs_and_table_are_the_same() -> None:
    """Every action has a stub in every driver, every stub an action; all are one file."""
    for kind, drivers in DRIVERS.items():
        for driver in drivers:
            directory = ROOT / "remotes" / kind / driver
            assert {path.name for path in directory.iterdir()} == set(ACTIONS[kind])
            for path in directory.iterdir():
                assert os.readlink(path) == "../../cxm/action"
    assert os.access(ROOT / "remotes" / "cxm" / "action", os.X_OK)


def test_the_sample_of_the_settings_is_up_to_date() -> None:
    """It is written by the table of the settings, never by hand."""
    text = (ROOT / "remotes" / "cxmrc").read_text()
    assert text == config.sample(config.FrontendConfig, {})
    assert config.frontend(text, "cxmrc") == (config.FrontendConfig(), [])


def test_the_stub_takes_nothing_from_its_surroundings(frontend: Frontend) -> None:
    """Neither PYTHONPATH nor the directory that it is called in nor a module beside it counts."""
    evil = "raise SystemExit('evil')"
    for directory in (frontend.root / "evil", frontend.remotes / "tm" / "cxm"):
        (directory / "cxm").mkdir(parents=True)
        (directory / "cxm" / "__init__.py").write_text(evil)
        (directory / "re.py").write_text(evil)
    ended = subprocess.run(
        [frontend.remotes / "tm" / "cxm" / "snap_create"],
        capture_output=True,
        text=True,
        check=False,
        cwd=frontend.root / "evil",
        env={"PYTHONPATH": str(frontend.root / "evil"), "PATH": "/usr/bin"},
    )
    assert "evil" not in ended.stderr
    assert frontend.shown(ended).startswith("cxm does not support a snapshot")


# --- success ------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("driver", DRIVERS["tm"])
def test_success_is_silent_but_for_the_log(frontend: Frontend, driver: str) -> None:
    """No result on the output; what was done is in the log, in one round trip."""
    ended = clone(frontend, "solo1", driver)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "INFO: clone: solo1: created volume lv-one-42-0\n" in ended.stderr
    assert all(re.match(r"(INFO|WARN): clone: \D", line) for line in ended.stderr.splitlines())
    (asked,) = frontend.asked()
    request = asked["request"]
    assert isinstance(request, dict)
    assert request["cloud"] == "cloudone1"
    assert request["args"]["size_mib"] == 2048
    assert request["args"]["name"] == "alice-web1.vm.home.net"
    argv = asked["argv"]
    assert isinstance(argv, list)
    assert argv[-2:] == ["--", "sudo -n /usr/lib/cxm/cxm-helper disk-write"]


@every_version
def test_monitor_prints_what_oned_reads(frontend: Frontend) -> None:
    """The one TM action with a result."""
    text = (
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>0</ID><TEMPLATE><BRIDGE_LIST>dead solo1"
        "</BRIDGE_LIST></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>"
    )
    ended = frontend.run("tm", "cxm", "monitor", "0", stdin=text)
    assert (ended.returncode, ended.stdout) == (0, "USED_MB=4\nFREE_MB=6\nTOTAL_MB=10\n")


# --- failure ------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (
            "dead",
            (
                "dead cannot be reached by ssh, or the connection broke during disk-write: ssh: "
                "connect to host dead port 22: No route to host "
                "(as oneadmin on this machine, 'ssh dead true' must work)"
            ),
        ),
        (
            "locked",
            (
                "locked cannot be reached by ssh, or the connection broke during disk-write: "
                "oneadmin@locked: Permission denied (publickey,password). "
                "(as oneadmin on this machine, 'ssh locked true' must work)"
            ),
        ),
        (
            "cut",
            (
                "cut cannot be reached by ssh, or the connection broke during disk-write: "
                "Connection to cut closed by remote host. "
                "(as oneadmin on this machine, 'ssh cut true' must work)"
            ),
        ),
        (
            "bare",
            (
                "bare does not run cxm's helper (disk-write): sudo: /usr/lib/cxm/cxm-helper: "
                "command not found (install the package cxm-node there and run 'cxm-setup node')"
            ),
        ),
        ("full", "full: no space (make some)"),
    ],
)
def test_oned_shows_the_one_sentence(frontend: Frontend, host: str, sentence: str) -> None:
    """Whatever the version does with the error output, the sentence is what remains of it."""
    ended = clone(frontend, host)
    assert ended.returncode not in (0, 42, 255)
    assert ended.stdout == ""
    assert frontend.shown(ended) == sentence


@every_version
def test_oned_that_does_not_answer_is_one_sentence(frontend: Frontend) -> None:
    """Nothing was sent to the host."""
    (frontend.root / "var" / "config").write_text("PORT=1\n")
    ended = clone(frontend, "solo1")
    assert ended.returncode == 9
    assert frontend.shown(ended).startswith("oned does not answer at http://127.0.0.1:1/RPC2: ")
    assert frontend.asked() == []


def test_what_is_ignored_of_a_cxmrc_stands_in_the_log_of_a_vm_that_starts(tmp_path: Path) -> None:
    """Once for each start, not at each step: the administrator sees it, and the log stays short."""
    made = install(tmp_path, "7.4")
    with (made.remotes / "cxmrc").open("a") as file:
        file.write("XPATH=/bin/x\n")
    deployed = made.run("vmm", "cxm", "deploy", "/nowhere/deployment.0", "node1", "1", "node1")
    warnings = [line for line in deployed.stderr.splitlines() if line.startswith("WARN: deploy: ")]
    assert len(warnings) == 1
    assert "XPATH is obsolete and ignored" in warnings[0]
    assert "XPATH" not in made.run("vmm", "cxm", "cancel", "one-1", "node1", "1", "node1").stderr


@every_version
@pytest.mark.parametrize("driver", DRIVERS["tm"])
def test_unsupported_actions_fail(frontend: Frontend, driver: str) -> None:
    """Exit code 0 would be believed."""
    ended = frontend.run("tm", driver, "resize", "a:/x/42/disk.0", "64", "42", "0")
    assert ended.returncode == 6
    assert frontend.shown(ended) == (
        "cxm does not support enlarging a disk (resize) here; nothing was done"
    )


@every_version
def test_wrong_settings_are_one_sentence(frontend: Frontend) -> None:
    """File, line and the nearest name."""
    (frontend.remotes / "cxmrc").write_text("\nMODUS=RAW\n")
    ended = clone(frontend, "solo1")
    assert ended.returncode == 3
    assert frontend.shown(ended) == (
        f"{frontend.remotes}/cxmrc:2: unknown setting MODUS; did you mean MODE?"
    )


@every_version
def test_the_error_is_one_line_of_ascii(frontend: Frontend) -> None:
    """Oned's protocol with its drivers is line based."""
    source = frontend.root / "w\u00e9b\nimage"
    ended = frontend.run("tm", "cxm", "clone", f"front:{source}", place("solo1"), "42", "1")
    assert ended.returncode == 7
    assert ended.stderr.isascii()
    assert frontend.shown(ended) == (
        f"the image {frontend.root}/w?b image does not exist on the frontend"
    )


@every_version
def test_a_missing_package_is_one_sentence(frontend: Frontend) -> None:
    """The remotes were copied to a machine that has no cxm."""
    shutil.rmtree(frontend.root / "python")
    for kind, action in (("tm", "clone"), ("vmm", "deploy")):
        ended = frontend.run(kind, "cxm", action)
        assert ended.returncode == 1
        assert frontend.shown(ended) == (
            f"{action}: the package of cxm is not installed on this machine "
            f"({frontend.root / 'python'} is missing; install cxm-frontend or cxm-node)"
        )


@every_version
def test_a_defect_is_one_sentence_and_its_trace_is_in_the_log(frontend: Frontend) -> None:
    """Nobody foresaw it; oned still gets a sentence, and the trace can be reported."""
    module = frontend.root / "python" / "cxm" / "one" / "tm" / "clone.py"
    module.write_text("def run(ctx, call):\n    return 1 / 0\n")
    ended = clone(frontend, "solo1")
    assert ended.returncode == 1
    assert "clone failed unexpectedly: ZeroDivisionError" in frontend.shown(ended)
    assert "DEBUG: clone: " in ended.stderr


# --- ended from outside -------------------------------------------------------------------------


@every_version
def test_a_signal_ends_the_action_and_what_it_started(frontend: Frontend) -> None:
    """Oned's time limit sends TERM: no ssh stays behind, and a sentence says what happened."""
    argv = [
        str(frontend.remotes / "tm" / "cxm" / "clone"),
        f"front:{frontend.root / 'image'}",
        place("slow"),
        "42",
        "1",
    ]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=frontend.environment(),
    )
    marker = frontend.root / "asked.slow"
    deadline = time.monotonic() + 30
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    ended = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
    assert ended.returncode == 1
    assert frontend.shown(ended) == "clone was ended by SIGTERM and has undone what it did"
    users = subprocess.run(["fuser", str(marker)], capture_output=True, check=False)
    assert users.returncode == 1
