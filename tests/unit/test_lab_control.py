# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Talking to QEMU, knowing processes, telling steps, showing tables."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxm.errors import CommandError, NotFoundError, RefusedError, UsageError
from lab import accel, faults, machine, main, process, report, snapshot
from lab.image import NodeImage
from lab.machine import Power
from lab.places import Places
from lab.progress import Progress, StepError
from lab.qemu import Files, arguments
from lab.qmp import Qmp
from lab.spec import make_spec

Answers = Callable[[str], list[dict[str, Any]]]


class FakeQemu:
    """Speaks the machine protocol on a socket; keeps the commands it was given."""

    def __init__(self, path: str, answers: dict[str, list[dict[str, Any]]]) -> None:
        self.commands: list[str] = []
        self._answers = answers
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as lines:
                self._send(lines, {"QMP": {}})
                for line in lines:
                    command = json.loads(line)["execute"]
                    self.commands.append(command)
                    queue = self._answers.get(command, [])
                    last = queue.pop(0) if len(queue) > 1 else (queue or [{"return": {}}])[0]
                    self._send(lines, {"event": "NOISE"})
                    self._send(lines, last)

    @staticmethod
    def _send(lines: Any, message: dict[str, Any]) -> None:
        lines.write(json.dumps(message).encode() + b"\n")
        lines.flush()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[..., tuple[FakeQemu, str]]]:
    """Makes fake QEMUs."""
    made: list[FakeQemu] = []

    def make(**answers: list[dict[str, Any]]) -> tuple[FakeQemu, str]:
        path = str(tmp_path / f"qmp{len(made)}")
        by_name = {name.replace("_", "-"): list(queue) for name, queue in answers.items()}
        made.append(FakeQemu(path, by_name))
        return made[-1], path

    yield make
    for one in made:
        one.close()


def _status(word: str) -> dict[str, Any]:
    return {"return": {"status": word}}


def test_qmp_skips_events_and_raises_refusals(qemu: Any) -> None:
    """An answer is found behind events; an error carries QEMU's words."""
    _, path = qemu(cont=[{"error": {"desc": "no way"}}], query_status=[_status("paused")])
    with Qmp(path) as qmp:
        assert qmp.status() == "paused"
        with pytest.raises(CommandError, match="refused 'cont': no way"):
            qmp.execute("cont")


def test_qmp_says_when_nobody_is_there(tmp_path: Path) -> None:
    """A missing socket is one sentence, not a traceback."""
    with pytest.raises(CommandError, match="does not answer"):
        Qmp(str(tmp_path / "none"))


def test_a_failed_save_is_told(qemu: Any) -> None:
    """A migration that fails names its reason."""
    failed = {"return": {"status": "failed", "error-desc": "no space"}}
    _, path = qemu(query_migrate=[{"return": {"status": "active"}}, failed])
    with Qmp(path) as qmp, pytest.raises(CommandError, match="no space"):
        qmp.save_memory("/x", timeout_s=5)


def test_switching_off_and_on_leaves_a_mark(qemu: Any, tmp_path: Path) -> None:
    """Off is remembered in a file; on boots an off machine and leaves a running one alone."""
    marker = str(tmp_path / "off")
    fake, path = qemu(query_status=[_status("running")])
    machine.switch_on(path, marker)
    assert "system_reset" not in fake.commands
    machine.switch_off(path, marker)
    assert os.path.exists(marker)
    assert fake.commands[-2:] == ["stop", "system_reset"]
    machine.switch_on(path, marker)
    assert not os.path.exists(marker)
    assert fake.commands[-2:] == ["system_reset", "cont"]


@pytest.mark.parametrize(
    ("status", "power"),
    [
        ("running", Power.RUNNING),
        ("paused", Power.HUNG),
        ("shutdown", Power.OFF),
        ("prelaunch", Power.OFF),
        ("internal-error", Power.HUNG),
    ],
)
def test_power_of_a_state(status: str, power: Power) -> None:
    """QEMU's word for its state means a power state."""
    assert machine.power_of(status) is power


def test_whose_interrupt_table_a_processor_has() -> None:
    """As QEMU 7.2 shows two processors: one in Xen, one inside a PVH guest."""
    shown = (
        "CPU#0\nRAX=0000000000000000 RBX=ffff82d04045a0c8\nGDT=     ffff83004a3e4000 0000efff\n"
        "IDT=     ffff82d040577000 00000fff\nCR0=8005003b CR2=00007f7bd2b9f000\n"
        "CPU#1\nIDT=     fffffe0000000000 00000fff\n"
    )
    assert machine.interrupt_tables(shown) == [0xFFFF82D040577000, 0xFFFFFE0000000000]


def test_processes_are_found_by_the_labs_id_and_end(tmp_path: Path) -> None:
    """A process belongs to the lab that started it, and to no other."""
    log = str(tmp_path / "log")
    pid = process.start(["sleep", "60"], log=log, lab_id="unit-a")
    process.wait_until(lambda: process.belongs(pid, "unit-a"), timeout_s=5, what="exec")
    try:
        assert process.find("unit-a") == [pid]
        assert process.find("unit-b") == []
    finally:
        process.end([pid])
    assert not process.alive(pid)


def test_waiting_notices_a_dead_process(tmp_path: Path) -> None:
    """Waiting for something that a dead process should do fails at once, with its last words."""
    log = str(tmp_path / "log")
    pid = process.start(["sh", "-c", "echo cannot do it; exit 3"], log=log, lab_id="unit-c")
    with pytest.raises(CommandError, match="has ended: last words: cannot do it"):
        process.wait_until(lambda: False, timeout_s=20, what="x", pid=pid, log=log)


def test_a_failed_step_names_itself_and_its_log() -> None:
    """The innermost step is the one that is named."""
    progress = Progress(quiet=True)
    with (
        pytest.raises(StepError) as caught,
        progress.step("outer", "/o"),
        progress.step("inner", "/i"),
    ):
        raise CommandError("it broke")
    assert caught.value.sentence() == "inner: it broke (log: /i)"


def test_faults_are_remembered_in_words(tmp_path: Path) -> None:
    """What is broken is written for the BMC and shown to people."""
    where = Places("unit", str(tmp_path), str(tmp_path / "state"), str(tmp_path / "logs"))
    assert faults.read(where, "node1").words() == []
    faults.write(where, "node1", faults.Faults(net=True, bmc_slow_s=4, bmc_linked=True))
    words = faults.read(where, "node1").words()
    assert words == ["net cut", "BMC slow (4 s)", "BMC powered by host"]


def test_a_grid_has_straight_columns() -> None:
    """Columns are as wide as their widest cell; no blanks at the ends of lines."""
    assert report.grid([("A", "LONGER"), ("xyz", "b")]) == "A    LONGER\n───  ──────\nxyz  b"


@pytest.fixture
def where(tmp_path: Path) -> Places:
    """Places below a temporary directory."""
    return Places("unit", str(tmp_path), str(tmp_path / "state"), str(tmp_path / "logs"))


_TERMS = snapshot.Terms(image="i", spec="s", keys="k", qemu="q", accelerator="tcg")


def _keep(where: Places, name: str, made: float) -> None:
    directory = Path(snapshot.directory_of(where, name))
    directory.mkdir(parents=True)
    spec = make_spec(["solo1"])
    manifest = {"terms": {"image": "i", "spec": "s", "keys": "k", "qemu": "q",
                          "accelerator": "tcg"},
                "spec": spec.to_json(), "states": {"solo1": "running"}, "made": made}  # fmt: skip
    path = directory / "snapshot.json"
    path.write_text(json.dumps(manifest))
    os.utime(path, (made, made))


def test_a_snapshot_of_another_lab_is_refused(where: Places) -> None:
    """A snapshot says what is different about the lab that made it."""
    _keep(where, "mine", 1)
    found = snapshot.load(where, "mine")
    found.check(_TERMS)
    with pytest.raises(RefusedError, match="other ssh keys"):
        found.check(snapshot.Terms(image="i", spec="s", keys="x", qemu="q", accelerator="tcg"))
    with pytest.raises(NotFoundError):
        snapshot.load(where, "other")


def test_programs_snapshots_are_pruned_and_peoples_kept(where: Places) -> None:
    """The last used ones of each first word stay; a person's snapshot is never pruned."""
    for number in range(12):
        _keep(where, f"cxm-{number}.aa", number + 1)
    _keep(where, "booted.aa", 1)
    _keep(where, "cxm-mine", 1)
    snapshot.prune(where, "cxm-99")
    left = {found.name for found in snapshot.everything(where)}
    assert left == {"booted.aa", "cxm-mine"} | {f"cxm-{number}.aa" for number in range(4, 12)}


def test_the_command_line_of_a_node_quotes_commas(where: Places) -> None:
    """A comma in a path does not become an option of QEMU."""
    host = make_spec(["node1"]).host("node1")
    built = NodeImage("k", "/cache/a,b")
    words = arguments(built, Files(where, "node1"), host, accel.TCG, incoming=True)
    initrd = words[words.index("-initrd") + 1]
    assert initrd.startswith("/cache/a,,b/vmlinux ")
    assert initrd.count(",") - 2 * initrd.count(",,") == 1
    assert words[-2:] == ["-incoming", "defer"]
    assert "-S" in words


def test_acceleration_can_be_forced_and_is_checked(
    where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CXM_LAB_ACCEL decides; a wrong word is an error."""
    monkeypatch.setenv("CXM_LAB_ACCEL", "kvm")
    assert accel.choose(where, []) == "kvm"
    monkeypatch.setenv("CXM_LAB_ACCEL", "fast")
    with pytest.raises(UsageError):
        accel.choose(where, [])


def test_the_answer_about_kvm_is_remembered_until_the_next_boot(
    where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is made once a boot."""
    monkeypatch.delenv("CXM_LAB_ACCEL", raising=False)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    Path(where.cached("accel")).write_text(f"{boot} kvm\n")
    assert accel.choose(where, []) == "kvm"


@pytest.mark.parametrize("words", [["up", "--memory", "solo1"], ["up", "nohost"], ["--name", "A"]])
def test_wrong_words_end_with_a_usage_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line that makes no sense costs one sentence and exit status 2."""
    try:
        code = main.main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "cxm-lab" in capsys.readouterr().err
