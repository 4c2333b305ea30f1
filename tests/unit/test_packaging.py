# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The Debian packages hold what they should, and sudo allows the helper's verbs only."""

import os
import re
from pathlib import Path

import pytest

from cxm import __version__
from cxm.node.client import HELPER
from cxm.node.verbs import VERBS
from cxm.run import System
from cxm.setup import clustercheck

ROOT = Path(__file__).parents[2]
SUDOERS = ROOT / "packaging/sudoers.d/cxm"
PACKAGES = ("cxm-common", "cxm-frontend", "cxm-node")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages, by name."""
    out = tmp_path_factory.mktemp("deb") / "out"
    System().run([str(ROOT / "packaging/build"), str(out)])
    return {name: out / f"{name}_{__version__}_all.deb" for name in PACKAGES}


def _listing(package: Path) -> dict[str, str]:
    """Path -> mode and owner, as dpkg shows them."""
    found = {}
    for line in System().run(["dpkg-deb", "--contents", str(package)]).stdout.splitlines():
        mode, owner, _size, _day, _time, path = line.split(maxsplit=5)
        found[path.removeprefix(".").split(" -> ")[0]] = f"{mode} {owner}"
    return found


def test_sudo_allows_exactly_the_verbs() -> None:
    """Each verb with a request is one command without arguments; the service's verb is none."""
    text = SUDOERS.read_text().replace("\\\n", " ")
    aliases = dict(re.findall(r"^Cmnd_Alias (\w+) = (.*)$", text, re.MULTILINE))
    allowed = re.findall(r"^oneadmin ALL=\(root\) NOPASSWD: (.*)$", text, re.MULTILINE)
    assert len(allowed) == 1
    names = allowed[0].split(", ")
    assert sorted(names) == sorted(aliases)
    commands = [" ".join(word.split()) for name in names for word in aliases[name].split(",")]
    wanted = [f"{HELPER} {verb}" for verb, row in VERBS.items() if row.request]
    assert sorted(commands) == sorted(wanted)


def test_sudo_understands_its_file() -> None:
    """A file that sudo cannot read would disable sudo on the whole node."""
    System().run(["visudo", "--check", "--strict", "--file", str(SUDOERS)])


@pytest.mark.extensive
def test_packages_are_reproducible(built: dict[str, Path], tmp_path: Path) -> None:
    """The same tree gives the same bytes."""
    System().run([str(ROOT / "packaging/build"), str(tmp_path / "again")])
    for path in built.values():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_node_package_holds_the_way_to_root(built: dict[str, Path]) -> None:
    """Root owns the helper and the program; nobody else can write any of it."""
    node, common = _listing(built["cxm-node"]), _listing(built["cxm-common"])
    assert node[HELPER] == "-rwxr-xr-x root/root"
    assert node["/etc/sudoers.d/cxm"] == "-r--r----- root/root"
    assert node["/usr/lib/cxm/cxm-dlm-fence"] == "-rwxr-xr-x root/root"
    assert node["/usr/lib/ocf/resource.d/cxm/lockspace"] == "-rwxr-xr-x root/root"
    assert common["/usr/sbin/cxm-setup"] == "-rwxr-xr-x root/root"
    for path, mode in (node | common).items():
        assert mode.endswith("root/root"), path
        assert mode.startswith("l") or mode[5] == mode[8] == "-", path


def test_program_is_there_once_and_complete(built: dict[str, Path]) -> None:
    """Frontend and nodes share one program; tests and lab are not shipped."""
    listings = {name: _listing(path) for name, path in built.items()}
    shipped = {
        path.removeprefix("/usr/lib/cxm/python/")
        for path in listings["cxm-common"]
        if path.endswith(".py")
    }
    source = {os.path.relpath(path, ROOT / "src") for path in (ROOT / "src/cxm").rglob("*.py")}
    assert shipped == source
    paths = [path for listing in listings.values() for path in listing if not path.endswith("/")]
    assert len(paths) == len(set(paths))


def test_drivers_are_links_in_the_package(built: dict[str, Path]) -> None:
    """As in the repository: every action is a link to the one stub."""
    listing = _listing(built["cxm-frontend"])
    assert listing["/usr/share/cxm/remotes/cxm/action"] == "-rwxr-xr-x root/root"
    assert listing["/usr/share/cxm/remotes/tm/cxm/clone"].startswith("lrwxrwxrwx")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_says_its_version_and_what_it_needs(built: dict[str, Path], name: str) -> None:
    """Node and frontend need the very same program."""
    ask = ["dpkg-deb", "--field", str(built[name])]
    assert System().run([*ask, "Version"]).stdout.strip() == __version__
    depends = System().run([*ask, "Depends"]).stdout
    assert ("python3 (>= 3.11)" if name == "cxm-common" else f"cxm-common (= {__version__})") in (
        depends
    )


def test_standalone_host_needs_no_cluster_stack(built: dict[str, Path]) -> None:
    """It is suggested; cxm-setup cluster says what is missing."""
    ask = ["dpkg-deb", "--field", str(built["cxm-node"])]
    needed = System().run([*ask, "Depends"]).stdout + System().run([*ask, "Recommends"]).stdout
    suggested = System().run([*ask, "Suggests"]).stdout
    tables = [clustercheck.NEEDED, clustercheck.AGENTS, clustercheck.SBD]
    tables += clustercheck.DATASTORE.values()
    packages = {"fence-agents"}.union(*(each.values() for each in tables))
    for package in packages - {"openssh-client", "cxm-node"}:
        assert package not in re.split(r"[,\s]+", needed)
        assert package in re.split(r"[,\s]+", suggested)


@pytest.mark.parametrize("name", ["cxm-cli", "cxm-helper", "cxm-setup", "cxmd_ctl"])
def test_entry_points_are_python_with_a_clean_start(name: str) -> None:
    """Isolated from the caller's environment: -I; the path to the program is fixed."""
    text = (ROOT / "packaging/bin" / name).read_text()
    assert re.match(r"#!/usr/bin/python3 -I\w*B\n", text)
    assert 'sys.path.insert(0, "/usr/lib/cxm/python")' in text
    compile(text, name, "exec")


def _purge(package: str, top: Path) -> list[str]:
    """What a package's purge removes below ``top``, each with the account that removes it."""
    tools = top / "tools"
    tools.mkdir()
    fakes = {
        "rm": 'echo "${WHO:-root} $*" >>"$LOG"',
        "runuser": '[ "$1 $3" = "-u --" ] && WHO=$2 && export WHO && shift 3 && exec "$@"',
        "setpriv": 'WHO=$1 && export WHO && shift 3 && exec "$@"',
        "getent": "echo oneadmin:x:9869:9869::/nowhere:/bin/sh",
        "systemctl": "exit 0",
    }
    for name, does in fakes.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    text = (ROOT / "packaging/deb" / package / "postrm").read_text()
    script = top / "postrm"
    script.write_text(re.sub(r"(?<![\w$}/.])/(?=(?:var|etc|usr|run|root)/)", f"{top}/", text))
    path = f"{tools}:/usr/bin:/bin"
    argv = ["env", f"PATH={path}", f"LOG={top}/log", "/bin/sh", str(script), "purge"]
    System().run(argv)
    return (top / "log").read_text().replace(str(top), "").splitlines()


def test_purge_of_a_node_is_oneadmins_work_where_oneadmin_can_write(tmp_path: Path) -> None:
    """A link in /var/tmp/one would lead root's removal anywhere."""
    removed = _purge("cxm-node", tmp_path)
    assert "root -rf /etc/cxm /var/lib/cxm /run/cxm" in removed
    scripts = [line for line in removed if "tmp/one" in line]
    assert "tm/cxm_local" in " ".join(scripts)
    assert {line.split()[0] for line in scripts} == {"oneadmin"}


def test_purge_of_a_frontend_has_the_rights_of_the_remotes_owner(tmp_path: Path) -> None:
    """Who can write the remotes directory can plant a link in it."""
    remotes = tmp_path / "var/lib/one/remotes"
    (remotes / "cxm").mkdir(parents=True)
    record = tmp_path / "var/lib/cxm-frontend/remotes"
    record.parent.mkdir()
    record.write_text(f"9869 9870 {remotes}\n")
    removed = _purge("cxm-frontend", tmp_path)
    assert removed.pop() == "root -rf /var/lib/cxm-frontend"
    removed = [line for line in removed if "/etc/systemd/system/" not in line]
    assert "--reuid=9869 -rf /var/lib/one/cxm-sync" in removed
    assert "/var/lib/one/remotes/tm/cxm_local" in " ".join(removed)
    assert {line.split()[0] for line in removed} == {"--reuid=9869"}
