# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup frontend: drivers, settings, OpenNebula's own files; nothing the second time."""

import os
import re
import shutil
from pathlib import Path

import pytest

from cxm import config
from cxm.errors import CxmError, NotFoundError
from cxm.one.version import OneVersion
from cxm.run import System
from cxm.setup import frontend, main, oneconf
from cxm.setup.install import Account
from tests.fakes.administration import KEY, FakeOned, Said, files_of
from tests.fakes.machine import FakeNode, Outcome
from tests.unit.test_config import ORIGINAL
from tests.unit.test_setup_parts import ONED

TREE = str(Path(__file__).parents[2] / "remotes")


class Frontend:
    """An OpenNebula in a temporary directory."""

    def __init__(self, tmp: Path, version: str) -> None:
        self.location = tmp / "one"
        self.home = tmp / "home"
        self.record = tmp / "record"
        self.units = tmp / "units"
        self.has_systemd = False
        for name in ("etc/vmm_exec", "var/remotes/tm/ssh"):
            (self.location / name).mkdir(parents=True)
        (self.home / ".ssh").mkdir(parents=True)
        (self.home / ".ssh/id_rsa.pub").write_text(f"{KEY} oneadmin@frontend\n")
        (self.location / "etc/oned.conf").write_text(ONED)
        if version != "3.8":
            (self.location / "var/remotes/VERSION").write_text(f"{version}\n")
        (self.location / "etc/monitord.conf").write_text('PORT = "4124"\n')
        self.runner = FakeNode(str(tmp / "machine"))
        self.runner.model("oned", lambda _argv, _in: Outcome("OpenNebula 3.8.5 is\n"))
        self.runner.model(
            f"{self.location}/bin/oned", lambda _argv, _in: Outcome("OpenNebula 3.8.5 is\n")
        )
        self.oned = FakeOned(OneVersion(*map(int, version.split("."))))
        files = {0: ("system", "SYSTEM_DS"), 1: ("default", "IMAGE_DS"), 2: ("files", "FILE_DS")}
        for number, (name, kind) in files.items():
            self.oned.datastores[number] = {"NAME": name, "TM_MAD": "ssh", "TYPE": kind}

    def run(self, **options: object) -> str:
        """Run it; returns what it said."""
        world = frontend.World(
            self.runner,
            environ={},
            tree=TREE,
            record=str(self.record),
            which=lambda name: f"/usr/bin/{name}",
            account=lambda _path: Account("oneadmin", os.geteuid(), os.getegid(), str(self.home)),
            oned=lambda _remotes, _environ: self.oned,
            units=str(self.units),
            has_systemd=self.has_systemd,
            stamp="stamp",
        )
        said = Said()
        frontend.run(
            world,
            frontend.Options(one_location=str(self.location), name="frontend", **options),  # type: ignore[arg-type]  # a test's shorthand
            said,
        )
        return said.text

    def text(self, path: str) -> str:
        return (self.location / path).read_text()

    def everything(self) -> dict[str, bytes]:
        return files_of(str(self.location)) | files_of(str(self.home))


@pytest.fixture(params=["3.8", "5.10.5", "7.4.0"])
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Frontend:
    """An OpenNebula of each world: before TM_MAD_CONF, before monitord, today."""
    return Frontend(tmp_path, request.param)


def test_without_apply_opennebulas_files_stay(one: Frontend) -> None:
    """Drivers and settings are in place; the rest is shown, with the enrolment line."""
    said = one.run()
    assert ("onehost sync --force\n" in said) == (one.oned.version >= (4, 4))
    assert "onehost sync" in said
    assert one.text("etc/oned.conf") == ONED
    assert '+    NAME           = "vmm_cxm"' in said or '+    NAME       = "vmm_cxm"' in said
    settings, _ = config.frontend(one.text("var/remotes/cxmrc"), "cxmrc")
    assert f"cxm-setup node --frontend frontend --cloud {settings.cloud_id}" in said
    assert f"--key '{KEY}'" in said
    assert "onehost create HOST --im cxm --vm vmm_cxm" in said
    assert "-l migrate" in said  # without which cxm-sync tells OpenNebula nothing
    assert ("--net dummy" in said) == (one.oned.version < (5, 0))
    assert (one.location / "var/remotes/tm/cxm/clone").is_symlink()


def test_apply_edits_with_a_copy_and_only_once(one: Frontend) -> None:
    """The files can be read by oned, the old ones are kept, and a second run changes nothing."""
    one.run(apply=True)
    names = {each.get("NAME") for each in oneconf.parse(one.text("etc/oned.conf"), "x")}
    assert "vmm_cxm" in names
    assert one.text("etc/oned.conf.cxm-stamp") == ONED
    assert "ConnectTimeout 5" in (one.home / ".ssh/config").read_text()
    is_new = one.oned.version >= (5, 12)
    assert ('"cxm"' in one.text("etc/monitord.conf")) == is_new
    assert ((one.location / "etc/vmm_exec/vmm_exec_cxm.conf").exists()) == (
        one.oned.version < (5, 0)
    )
    before = one.everything()
    said = one.run(apply=True)
    assert one.everything() == before
    assert "drivers: in place" in said
    if os.geteuid() == 0:  # what the package's removal reads
        owner = f"{os.geteuid()} {os.getegid()}"
        assert one.record.read_text() == f"{owner} {one.location}/var/remotes\n"


def test_a_later_run_finds_the_driver_by_the_name_that_it_has(tmp_path: Path) -> None:
    """Neither a second driver is made, nor is the wrong one told in the line for hosts."""
    one = Frontend(tmp_path, "7.4.0")
    one.run(apply=True, vm_mad="qemu", take_over=True)
    once = one.text("etc/oned.conf")
    assert "--vm qemu" in one.run(apply=True)
    assert one.text("etc/oned.conf") == once


def test_dry_run_of_the_frontend_changes_nothing(one: Frontend) -> None:
    """Neither drivers nor settings."""
    before = one.everything()
    said = one.run(dry_run=True, apply=True)
    assert one.everything() == before
    assert "+++ " in said
    assert "CLOUD_ID" in said


def test_datastores_are_made_and_only_once(one: Frontend) -> None:
    """One image datastore, and a cluster with a system datastore for each place."""
    said = one.run(datastores=True, sans=["san1"])
    assert "datastore 'cxm' made" in said
    assert one.oned.named("cxm")["NO_DECOMPRESS"] == "yes"
    assert one.oned.named("cxm_local")["TM_MAD"] == "cxm_local"
    assert one.oned.named("san1")["TM_MAD"] == "cxm"
    if one.oned.version >= (5, 0):
        assert one.oned.cluster_of("cxm_local") == {"cxm_local", "cxm", "files"}
        assert one.oned.cluster_of("san1") == {"san1", "cxm", "files"}
        assert one.oned.named("cxm")["DRIVER"] == "raw"
    else:
        assert one.oned.cluster_of("cxm_local") == {"cxm_local"}
        number = next(n for n, each in one.oned.datastores.items() if each["NAME"] == "san1")
        cluster = next(each for each in one.oned.clusters.values() if each["NAME"] == "san1")
        assert cluster["SYSTEM_DS"] == str(number)
    assert "datastores: up to date" in one.run(datastores=True, sans=["san1"])


def test_datastore_is_brought_up_to_date(one: Frontend) -> None:
    """What was changed comes back, what an administrator added stays."""
    one.run(datastores=True)
    one.oned.named("cxm").update({"NO_DECOMPRESS": "no", "LIMIT_MB": "5"})
    said = one.run(datastores=True)
    assert "datastore 'cxm': NO_DECOMPRESS set" in said
    assert one.oned.named("cxm")["NO_DECOMPRESS"] == "yes"
    assert one.oned.named("cxm")["LIMIT_MB"] == "5"


def test_datastore_of_another_driver_is_not_touched(one: Frontend) -> None:
    """The name is taken: the error says by whom, and how to free it."""
    one.oned.datastores[77] = {"NAME": "cxm", "TM_MAD": "ssh"}
    with pytest.raises(CxmError, match="exists with TM_MAD 'ssh'") as failure:
        one.run(datastores=True)
    assert failure.value.hint == "rename it: onedatastore rename 77 NEWNAME"


def test_oned_that_was_not_restarted_is_suspected(one: Frontend) -> None:
    """It does not know the driver yet: the hint says so."""
    one.oned.known_tm = False
    with pytest.raises(CxmError) as failure:
        one.run(datastores=True)
    assert "restarted" in (failure.value.hint or "")


def test_original_installation_is_converted(one: Frontend) -> None:
    """Its drivers and its cxmrc are kept outside of the tree; its settings go on to count."""
    remotes = one.location / "var/remotes"
    (remotes / "tm/cxm").mkdir(parents=True)
    (remotes / "tm/cxm/clone").write_text("#!/bin/bash\n")
    (remotes / "cxmrc").write_text(ORIGINAL)
    said = one.run()
    settings, _ = config.frontend(one.text("var/remotes/cxmrc"), "cxmrc")
    assert settings.default_lv_size == 20480
    assert one.text("var/cxmrc-stamp") == ORIGINAL
    assert one.text("var/cxm-replaced-stamp/tm/cxm/clone") == "#!/bin/bash\n"
    assert "--vg VGSAN --set LV_PREFIX=lv-one --key" in said


def test_what_is_ignored_of_a_cxmrc_is_said(one: Frontend) -> None:
    """A setting that has no meaning any more is not taken silently."""
    one.run()
    with (one.location / "var/remotes/cxmrc").open("a") as file:
        file.write("XPATH=/bin/x\n")
    said = one.run()
    assert re.search("settings: warning: .*cxmrc:[0-9]+: XPATH is obsolete and ignored", said)


def test_existing_ssh_settings_win(one: Frontend) -> None:
    """They are of one host, often: ours goes to the end, once, where it counts for the others."""
    own = "Host x\n  connecttimeout 9\n"
    path = one.home / ".ssh/config"
    path.write_text(own)
    one.run(apply=True)
    text = path.read_text()
    assert text.startswith(own)
    assert text.endswith("Host *\n  ConnectTimeout 5\n  StrictHostKeyChecking accept-new\n")
    path.write_text(text.replace("ConnectTimeout 5", "ConnectTimeout 7"))
    edited = path.read_text()
    one.run(apply=True)
    assert path.read_text() == edited


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
def test_ssh_takes_ours_for_the_other_hosts(one: Frontend) -> None:
    """As ssh itself reads it."""
    path = one.home / ".ssh/config"
    path.write_text("Host x\n  ConnectTimeout 9\n")
    one.run(apply=True)

    def timeout_of(host: str) -> str:
        said = System().run(["ssh", "-G", "-F", str(path), host]).stdout
        (line,) = [each for each in said.splitlines() if each.startswith("connecttimeout ")]
        return line.split()[1]

    assert (timeout_of("x"), timeout_of("node1")) == ("9", "5")


def test_key_is_made_where_there_is_none(one: Frontend) -> None:
    """The account of oned needs one to reach its hosts."""
    (one.home / ".ssh/id_rsa.pub").unlink()

    def ssh_keygen(argv: tuple[str, ...], _in: bytes) -> Outcome:
        Path(f"{argv[-1]}.pub").write_text(f"{KEY} made\n")
        return Outcome()

    one.runner.model("ssh-keygen", ssh_keygen)
    one.runner.model("runuser", lambda argv, data: ssh_keygen(argv[4:], data))
    assert f"--key '{KEY}'" in one.run()


def test_machine_without_opennebula_is_said(tmp_path: Path) -> None:
    """The sentence names what is missing and the option for another place."""
    world = frontend.World(FakeNode(str(tmp_path / "m")), environ={"ONE_LOCATION": str(tmp_path)})
    with pytest.raises(NotFoundError, match="there is no OpenNebula here") as failure:
        frontend.run(world, frontend.Options(), Said())
    assert "--one-location" in (failure.value.hint or "")


def test_command_line_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says what kind of failure it was."""
    code = main.main(["frontend", "--one-location", str(tmp_path)])
    said = capsys.readouterr()
    assert code == NotFoundError.code
    assert said.err.startswith("cxm-setup: there is no OpenNebula here")
    assert said.err.count("\n") == 1


def test_the_sync_is_switched_on(tmp_path: Path) -> None:
    """Its timer; a self-contained OpenNebula is named to its service. Twice changes nothing."""
    one = Frontend(tmp_path, "7.4.0")
    one.has_systemd = True
    enabled: set[str] = set()

    def systemctl(argv: tuple[str, ...], _in: bytes) -> Outcome:
        if argv[1] == "enable":
            enabled.add(argv[-1])
        asks = argv[1] in ("is-enabled", "is-active")
        return Outcome("enabled\n" if enabled else "", code=int(asks and not enabled))

    one.runner.model("systemctl", systemctl)
    assert "sync: enabled cxm-sync.timer" in one.run(apply=True)
    assert enabled == {"cxm-sync.timer"}
    text = (one.units / "cxm-sync.service.d/cxm-setup.conf").read_text()
    assert f"Environment=ONE_LOCATION={one.location}\n" in text
    assert "sync:" not in one.run(apply=True)


def test_without_systemd_it_is_said_what_runs_the_sync(tmp_path: Path) -> None:
    """In a container, or by an account that may not enable services."""
    said = Frontend(tmp_path, "7.4.0").run(apply=True)
    assert "have 'cxm-sync' run every 20 seconds as oned's account" in said
