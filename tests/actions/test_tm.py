# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The Transfer Manager's actions from oned's words to a host's volumes, whatever breaks between."""

import base64
import gzip
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxm import sparse
from cxm.errors import (
    ConfigError,
    CxmError,
    DataError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from cxm.names import State, Tags, VmId
from cxm.one.action import ACTIONS
from cxm.one.tm.context import make_cd
from cxm.run import System
from tests.fakes.hosts import FRONTEND, Cloud, Cut, Where, is_failure, run, tree, with_id
from tests.fakes.machine import CLOUD, MIB, FakeNode

DATA = Path(__file__).parents[1] / "data" / "one"
NOISE = hashlib.shake_128(b"noise").digest(MIB)
MEMORY = hashlib.shake_128(b"memory").digest(MIB)
# A disk of 4 MiB, one extent of the model, with data, zeros and a tail of zeros.
DISK = NOISE[:500_000] + bytes(MIB) + NOISE + b"the end".ljust(512, b"\0")
DISK = DISK.ljust(4 * MIB, b"\0")


def tar_gz() -> bytes:
    """A root file system as tar.gz."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        for name, data in (("etc/hostname", b"guest\n"), ("srv/noise", NOISE)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files lie where the test sees them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cloud" / FRONTEND / "tmp"))


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    """A frontend and two standalone hosts; oned knows VM 42 and its images."""
    return new_cloud(tmp_path / "cloud")


def new_cloud(root: Path, version: str = "7.4") -> Cloud:
    """A frontend and two standalone hosts; oned knows VM 42 and its images."""
    root.mkdir()
    made = Cloud(root, "solo1", "solo2")
    vm = (DATA / f"vm-{version}.xml").read_text()
    made.vms[42] = vm.replace("<SIZE><![CDATA[2048]]>", "<SIZE><![CDATA[29]]>")
    made.images[7] = (DATA / f"image-{version}.xml").read_text().replace("2G", "4M")
    made.images[8] = made.images[7].replace("<ID>7<", "<ID>8<")
    image(made, "web").write_bytes(DISK)
    (made.front / "vms" / "42" / "context.sh").write_text("HOSTNAME='web-1'\n")
    return made


def image(cloud: Cloud, name: str) -> Path:
    """A file of the image datastore."""
    return cloud.front / "datastores" / "1" / name


def volume(
    cloud: Cloud,
    host: str,
    disk: str = "0",
    *,
    vm: int = 42,
    content: bytes = DISK,
    state: State = State.READY,
    name: str = "alice-web1.vm.home.net",
) -> str:
    """Put a volume of a VM on a host, with its link; returns its name."""
    node = cloud.hosts[host]
    lv = f"lv-one-{vm}-{disk}"
    tags = Tags(CLOUD, VmId(vm), disk, state, name).encode()
    node.add_lv(lv, len(content) // MIB, tags=tags, content=content)
    if disk != "checkpoint":
        directory = cloud.directory(host, vm)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"disk.{disk}").symlink_to(node.path("dev", node.vg, lv))
    return lv


def has(cloud: Cloud, content: bytes) -> list[str]:
    """Where a disk's content is complete: volumes that are ready, files of the frontend."""
    found = [
        f"{host}:{lv.name}"
        for host, node in cloud.hosts.items()
        for lv in node.state.lvs.values()
        if "cxm.state=ready" in lv.tags and node.content(lv.name)[: len(content)] == content
    ]
    roots = [cloud.front, *(Path(node.path("datastores")) for node in cloud.hosts.values())]
    return found + [
        str(path.relative_to(cloud.root))
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
        if not sparse.is_part(path.name) and path.read_bytes() == content
    ]


def meaning(data: bytes) -> object:
    """What an image holds, whatever the times in its archive."""
    if not data.startswith(b"\x1f\x8b"):
        return hashlib.md5(data).hexdigest()
    plain = gzip.decompress(data)
    if plain[257:262] != b"ustar":
        return hashlib.md5(plain).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return sorted((member.name, member.type, member.size) for member in archive)


def of_host(node: FakeNode) -> dict[str, object]:
    """All that a host holds."""
    volumes = {
        lv.name: (
            lv.size,
            lv.tags,
            None if lv.name.endswith("-11") else hashlib.md5(node.content(lv.name)).hexdigest(),
            tree(node.tree(lv.name)),
        )
        for lv in node.state.lvs.values()
    }
    assert not node.state.mounts
    assert tree(node.path("tmp")) in ({}, {"cxm": "directory"})
    return {"volumes": volumes, "files": tree(node.path("datastores"))}


def everything(cloud: Cloud) -> dict[str, object]:
    """All that the cloud holds, hosts and frontend."""
    images = {
        path.name: meaning(path.read_bytes())
        for path in (cloud.front / "datastores" / "1").iterdir()
        if path.is_file()
    }
    kept = tree(str(cloud.front / "datastores" / "0"))
    hosts = {name: of_host(node) for name, node in cloud.hosts.items()}
    return {"images": images, "kept": kept, "hosts": hosts}


# --- whatever breaks, running it again ends well ------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """An action, what it starts from, and contents that must exist at every moment."""

    prepare: Callable[[Cloud], None]
    argv: Callable[[Cloud], list[str]]
    precious: tuple[bytes, ...] = ()
    mode: str = "TGZ"

    def run(self, cloud: Cloud, action: str) -> str:
        """Run the action once."""
        return run(cloud, action, *self.argv(cloud), mode=self.mode)


def _nothing(_cloud: Cloud) -> None:
    return


def _clone(cloud: Cloud, disk: str = "disk.0", name: str = "web") -> list[str]:
    return [f"{FRONTEND}:{image(cloud, name)}", cloud.place("solo1", disk), "42", "1"]


def _tar_image(cloud: Cloud) -> None:
    image(cloud, "web").write_bytes(tar_gz())


def _one_disk(cloud: Cloud) -> None:
    volume(cloud, "solo1")
    volume(cloud, "solo1", "1", content=NOISE * 4)


def _stopped_disk(cloud: Cloud) -> None:
    directory = cloud.directory(FRONTEND)
    directory.mkdir(parents=True)
    (directory / "disk.0").write_bytes(DISK)


def _vm_with_rest(cloud: Cloud) -> None:
    """What is left when oned has moved the disks: files, the context and the saved memory."""
    volume(cloud, "solo1", "11", content=NOISE * 4)
    volume(cloud, "solo1", "checkpoint", content=MEMORY * 4)
    (cloud.directory("solo1") / "deployment.0").write_text("name = 'x'\n")


def _stopped_rest(cloud: Cloud) -> None:
    directory = cloud.directory(FRONTEND)
    directory.mkdir(parents=True)
    (directory / "volume.11").write_bytes(NOISE * 4)
    (directory / "checkpoint").write_bytes(MEMORY * 4)
    (directory / "deployment.0").write_text("name = 'x'\n")


def _old_image(cloud: Cloud) -> None:
    image(cloud, "web").write_bytes(b"old content".ljust(512, b"."))
    volume(cloud, "solo1")


def _saved_back(cloud: Cloud) -> list[str]:
    return [cloud.place("solo1", "disk.0"), str(image(cloud, "web")), "42", "1"]


def _old_image_of_stopped(cloud: Cloud) -> None:
    image(cloud, "web").write_bytes(b"old content".ljust(512, b"."))
    _stopped_disk(cloud)


def _between(source: str, target: str, disk: str = "") -> Callable[[Cloud], list[str]]:
    def argv(cloud: Cloud) -> list[str]:
        return [cloud.place(source, disk), cloud.place(target, disk), "42", "0"]

    return argv


SCENARIOS = {
    "clone": Scenario(_nothing, _clone, (DISK,)),
    "clone tar": Scenario(_tar_image, _clone),
    "ln": Scenario(_nothing, _clone, (DISK,)),
    "clone kernel": Scenario(_nothing, lambda cloud: _clone(cloud, "kernel")),
    "mkimage": Scenario(
        _nothing, lambda cloud: ["8", "raw", cloud.place("solo1", "disk.1"), "42", "0"]
    ),
    "mkswap": Scenario(_nothing, lambda cloud: ["8", cloud.place("solo1", "disk.1"), "42", "0"]),
    "context": Scenario(
        _nothing,
        lambda cloud: [
            str(cloud.front / "vms" / "42" / "context.sh"),
            cloud.place("solo1", "disk.11"),
            "42",
            "0",
        ],
    ),
    "delete disk": Scenario(
        _one_disk, lambda cloud: [cloud.place("solo1", "disk.0"), "42", "1"], (NOISE * 4,)
    ),
    "delete all": Scenario(_one_disk, lambda cloud: [cloud.place("solo1"), "42", "0"]),
    "delete stopped": Scenario(
        _stopped_disk, lambda cloud: [cloud.place(FRONTEND, "disk.0"), "42", "1"]
    ),
    "mv stop disk": Scenario(_one_disk, _between("solo1", FRONTEND, "disk.0"), (DISK, NOISE * 4)),
    "mv resume disk": Scenario(_stopped_disk, _between(FRONTEND, "solo1", "disk.0"), (DISK,)),
    "mv migrate disk": Scenario(_one_disk, _between("solo1", "solo2", "disk.0"), (DISK,)),
    "mv stop all": Scenario(
        _vm_with_rest, _between("solo1", FRONTEND), (NOISE * 4, MEMORY * 4, b"name = 'x'\n")
    ),
    "mv resume all": Scenario(_stopped_rest, _between(FRONTEND, "solo1"), (NOISE * 4, MEMORY * 4)),
    "mv migrate all": Scenario(_vm_with_rest, _between("solo1", "solo2"), (NOISE * 4, MEMORY * 4)),
    "mvds raw": Scenario(_old_image, _saved_back, (DISK,), "RAW"),
    "mvds gzip": Scenario(_old_image, _saved_back, (DISK,), "GZIP"),
    "mvds stopped": Scenario(
        _old_image_of_stopped,
        lambda cloud: [cloud.place(FRONTEND, "disk.0"), str(image(cloud, "web")), "42", "1"],
        (DISK,),
        "TGZ",
    ),
}


def _check(cloud: Cloud, scenario: Scenario, *, killed: bool) -> None:
    """After a failure: nothing precious is lost, and nothing is left in the making."""
    for content in scenario.precious:
        assert has(cloud, content), "a content is lost"
    for node in cloud.hosts.values():
        assert not [lv.name for lv in node.state.lvs.values() if "cxm.state=filling" in lv.tags]
        assert not node.state.mounts
    if not killed:
        parts = [path for path in cloud.front.rglob("*") if sparse.is_part(path.name)]
        assert not parts
        assert not list((cloud.front / "tmp").iterdir())


@pytest.mark.parametrize("name", SCENARIOS)
def test_cut_anywhere_and_run_again_ends_the_same(tmp_path: Path, name: str) -> None:
    """At every step, the connection or the process ends; afterwards once more, and all is well."""
    scenario, action = SCENARIOS[name], name.split(maxsplit=1)[0]
    good = new_cloud(tmp_path / "cloud")
    scenario.prepare(good)
    assert scenario.run(good, action) == ""
    expected, steps = everything(good), len(good.steps)
    assert scenario.run(good, action) == ""
    assert everything(good) == expected
    System().run(["rm", "-r", str(good.root)])
    cuts = [
        Cut(step, where, kill) for step in range(steps) for where in Where for kill in (False, True)
    ]
    for cut in cuts:
        cloud = new_cloud(tmp_path / "cloud")
        scenario.prepare(cloud)
        cloud.cut = cut
        try:
            scenario.run(cloud, action)
        except BaseException as error:
            if not is_failure(error):
                raise
            cloud.revive()
            _check(cloud, scenario, killed=cut.kill)
            scenario.run(cloud, action)
        assert everything(cloud) == expected, cut
        System().run(["rm", "-r", str(cloud.root)])


# --- clone and ln -------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["clone", "ln"])
def test_a_raw_image_becomes_a_volume(cloud: Cloud, action: str) -> None:
    """Content, size, tags, link; in one round trip."""
    run(cloud, action, *_clone(cloud))
    node = cloud.hosts["solo1"]
    lv = node.state.lvs["lv-one-42-0"]
    assert node.content(lv.name) == DISK
    tags = Tags(CLOUD, VmId(42), "0", State.READY, "alice-web1.vm.home.net")
    assert set(lv.tags) == set(tags.encode())
    assert (cloud.directory("solo1") / "disk.0").is_symlink()
    assert cloud.steps == [("solo1", "disk-write")]


@pytest.mark.parametrize("version", ["3.8", "4.14", "5.10", "6.10", "7.4"])
def test_a_tar_image_becomes_files(tmp_path: Path, version: str) -> None:
    """The file system of FSTYPE, with the image's files, in every version."""
    cloud = new_cloud(tmp_path / "cloud", version)
    _tar_image(cloud)
    run(cloud, "clone", *_clone(cloud))
    node = cloud.hosts["solo1"]
    assert node.state.lvs["lv-one-42-0"].filesystem == "ext4"
    tree_of = Path(node.tree("lv-one-42-0"))
    assert (tree_of / "srv" / "noise").read_bytes() == NOISE
    assert (tree_of / "etc" / "hostname").read_bytes() == b"guest\n"


def test_the_disk_of_the_template_decides_the_size(cloud: Cloud) -> None:
    """The VM's template asks for more than the image has (5.0 on)."""
    cloud.vms[42] = cloud.vms[42].replace("<SIZE><![CDATA[29]]>", "<SIZE><![CDATA[40]]>", 1)
    run(cloud, "clone", *_clone(cloud))
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 40 * MIB


def test_a_volume_is_never_smaller_than_its_content(cloud: Cloud) -> None:
    """An LV_SIZE that is too small is exceeded, not the disk cut."""
    image(cloud, "web").write_bytes(DISK + DISK)
    run(cloud, "clone", *_clone(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0") == DISK + DISK


def test_a_cd_is_as_large_as_its_content(cloud: Cloud) -> None:
    """An installation CD gets no volume of gigabytes."""
    image(cloud, "web").write_bytes(bytes(32768) + b"\x01CD001\x01" + bytes(2041))
    cloud.images[7] = cloud.images[7].replace("4M", "800M")
    run(cloud, "ln", *_clone(cloud))
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 4 * MIB


def test_disk_10_has_its_own_image(cloud: Cloud) -> None:
    """Disk 1 is volatile, disk 10 is an image: they are not mistaken for each other."""
    run(cloud, "clone", *_clone(cloud, "disk.10"))
    assert list(cloud.hosts["solo1"].state.lvs) == ["lv-one-42-10"]
    run(cloud, "mkswap", "4", cloud.place("solo1", "disk.1"), "42", "0")
    run(cloud, "delete", cloud.place("solo1", "disk.1"), "42", "0")
    assert list(cloud.hosts["solo1"].state.lvs) == ["lv-one-42-10"]


def test_vm_1_beside_vm_10_and_11(cloud: Cloud) -> None:
    """Every action on VM 1 leaves VM 10 and 11 as they are."""
    text = cloud.vms[42]
    for vm in (1, 10, 11):
        cloud.vms[vm] = with_id(text, vm, name=f"web{vm}")
        place = cloud.place("solo1", "disk.0", vm)
        run(cloud, "clone", str(image(cloud, "web")), place, str(vm), "1")
    before = {name: cloud.hosts["solo1"].state.lvs[name] for name in ("lv-one-10-0", "lv-one-11-0")}
    place = cloud.place("solo1", "disk.0", 1)
    run(cloud, "mvds", place, str(image(cloud, "web")), "1", "1", mode="RAW")
    run(cloud, "delete", cloud.place("solo1", vm=1), "1", "0")
    assert cloud.hosts["solo1"].state.lvs == before
    assert sorted(path.name for path in cloud.directory("solo1", 10).parent.iterdir()) == [
        "10",
        "11",
    ]


def test_a_kernel_becomes_a_file(cloud: Cloud) -> None:
    """A file of a FILE datastore is copied whatever it holds."""
    image(cloud, "web").write_bytes(b"\x7fELF" + NOISE)
    run(cloud, "clone", *_clone(cloud, "kernel"))
    assert (cloud.directory("solo1") / "kernel").read_bytes() == b"\x7fELF" + NOISE
    assert not cloud.hosts["solo1"].state.lvs


def test_a_disk_whose_image_oned_does_not_know(cloud: Cloud) -> None:
    """3.x takes a SOURCE without an image: the default size holds."""
    cloud.vms[42] = cloud.vms[42].replace("<IMAGE_ID><![CDATA[7]]></IMAGE_ID>", "")
    run(cloud, "clone", *_clone(cloud), default_lv_size="12M")
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 12 * MIB


def _volume_of_another_cloud(cloud: Cloud) -> None:
    tags = ["cxm.cloud=othercloud", "cxm.vm=42", "cxm.disk=0", "cxm.state=ready"]
    cloud.hosts["solo1"].add_lv("lv-one-42-0", 4, tags=tags)


def _name_is_taken(cloud: Cloud) -> None:
    volume(cloud, "solo1", vm=41)


def _vm_named(owner: str, name: str) -> Callable[[Cloud], None]:
    def change(cloud: Cloud) -> None:
        text = cloud.vms[42].replace("<UNAME>alice<", f"<UNAME>{owner}<")
        cloud.vms[42] = text.replace("<NAME>web-1<", f"<NAME>{name}<")

    return change


def _image_is(content: bytes) -> Callable[[Cloud], None]:
    def change(cloud: Cloud) -> None:
        image(cloud, "web").write_bytes(content)

    return change


def _image_is_directory(cloud: Cloud) -> None:
    image(cloud, "web").unlink()
    image(cloud, "web").mkdir()


def _no_group(cloud: Cloud) -> None:
    cloud.hosts["solo1"].has_vg = False


def _full_group(cloud: Cloud) -> None:
    cloud.hosts["solo1"].add_lv("other", 1020)
    cloud.images[7] = cloud.images[7].replace("4M", "100M")


def _no_oned(cloud: Cloud) -> None:
    cloud.oned_answers = False


def _dead_host(cloud: Cloud) -> None:
    cloud.dead.add("solo1")


def _unknown_vm(cloud: Cloud) -> None:
    del cloud.vms[42]


def _no_disk(cloud: Cloud) -> None:
    cloud.vms[42] = cloud.vms[42].replace("<DISK_ID><![CDATA[0]]>", "<DISK_ID><![CDATA[100]]>")


def _bad_size(cloud: Cloud) -> None:
    cloud.images[7] = cloud.images[7].replace("4M", "four")


def _bad_filesystem(cloud: Cloud) -> None:
    _tar_image(cloud)
    cloud.images[7] = cloud.images[7].replace("ext4", "ntfs")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_volume_of_another_cloud, RefusedError, "belongs to disk 0 of VM 42 of the cloud"),
        (_name_is_taken, RefusedError, "'alice-web1.vm.home.net' of VM 42 is taken already"),
        (_vm_named("$;&amp;'/", "web"), UsageError, "its owner '$;&'/' has no letter or digit"),
        (_vm_named("alice", "---"), UsageError, "its name '---' has no letter or digit"),
        (_vm_named("alice", "\u2603"), UsageError, "has no letter or digit"),
        (_vm_named("-alice", "web"), UsageError, "'-alice-web.vm.home.net' cannot name a domain"),
        (_vm_named("", "web"), UsageError, "its owner '' has no letter"),
        (_image_is(b"\xfd7zXZ\0" + NOISE), DataError, "is xz-compressed"),
        (_image_is(b"KDMV" + NOISE), DataError, "vmdk"),
        (_image_is(gzip.compress(NOISE * 4)[:-100_000]), DataError, "damaged"),
        (_image_is(tar_gz()[:-100_000]), CxmError, "damaged"),
        (_image_is(gzip.compress(NOISE)[:-4] + b"\xff" * 4), DataError, "damaged"),
        (_image_is(gzip.compress(NOISE)[:-4] + b"\1\0\0\0"), DataError, "solo1: the image is"),
        (_image_is_directory, UsageError, "is a directory"),
        (lambda cloud: image(cloud, "web").unlink(), NotFoundError, "does not exist"),
        (_no_group, NotFoundError, "LVM_XEN"),
        (_full_group, RefusedError, "has 4 MiB free"),
        (_no_oned, UnreachableError, "oned does not answer"),
        (_dead_host, UnreachableError, "solo1 cannot be reached"),
        (_unknown_vm, NotFoundError, "oned refused one.vm.info"),
        (_no_disk, NotFoundError, "VM 42 has no disk 0 in oned"),
        (_bad_size, ConfigError, "LV_SIZE: 'four' is not a size"),
        (_bad_filesystem, ConfigError, "'ntfs' is not a file system"),
    ],
)
def test_what_cannot_be_cloned_is_one_sentence_and_leaves_nothing(
    cloud: Cloud, change: Callable[[Cloud], object], error: type[CxmError], says: str
) -> None:
    """The sentence names the cause; no volume, no link and no temporary file stays."""
    change(cloud)
    hosts = {name: set(node.state.lvs) for name, node in cloud.hosts.items()}
    with pytest.raises(error) as caught:
        run(cloud, "clone", *_clone(cloud))
    assert says in caught.value.sentence()
    assert "\n" not in caught.value.sentence()
    assert {name: set(node.state.lvs) for name, node in cloud.hosts.items()} == hosts
    for host in cloud.hosts:
        assert not list(Path(cloud.hosts[host].path("datastores")).rglob("disk.0")) or hosts[host]
    assert not list((cloud.front / "tmp").iterdir())


def test_a_name_of_any_letters_is_reduced_as_in_the_original(cloud: Cloud) -> None:
    """Blanks, quotes and letters of other scripts fall away; what is left names the domain."""
    _vm_named("alice", "w\u00e9b / '1' &amp; $x;")(cloud)
    run(cloud, "clone", *_clone(cloud))
    assert "cxm.name=alice-wb1x.vm.home.net" in cloud.hosts["solo1"].state.lvs["lv-one-42-0"].tags


# --- empty disks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "form", "expected"),
    [("3.8", "ext3", "ext3"), ("5.10", "ext4", "ext4"), ("7.4", "raw", "ext4"), ("3.8", "raw", "")],
)
def test_a_volatile_disk_is_made_as_its_version_says(
    tmp_path: Path, version: str, form: str, expected: str
) -> None:
    """FORMAT up to 5.10, FS later."""
    cloud = new_cloud(tmp_path / "cloud", version)
    if expected == "":
        cloud.vms[42] = cloud.vms[42].replace("ext3", "raw")
    run(cloud, "mkimage", "8", form, cloud.place("solo1", "disk.1"), "42", "0")
    lv = cloud.hosts["solo1"].state.lvs["lv-one-42-1"]
    assert (lv.size, lv.filesystem) == (8 * MIB, expected)
    assert cloud.steps == [("solo1", "disk-blank")]


# --- the context --------------------------------------------------------------------------------


def _cd_file(cloud: Cloud, name: str, tmp_path: Path) -> bytes:
    """A file of the CD that the VM would see, read by its long name."""
    cd = tmp_path / "cd"
    cd.write_bytes(cloud.hosts["solo1"].content("lv-one-42-11"))
    result = System().run(["isoinfo", "-i", str(cd), "-R", "-x", f"/{name}"])
    return result.stdout.encode()


def _context(cloud: Cloud, *files: str) -> None:
    target = cloud.place("solo1", "disk.11")
    run(cloud, "context", str(cloud.front / "vms" / "42" / "context.sh"), *files, target, "42", "0")


def test_the_context_becomes_a_cd(cloud: Cloud, tmp_path: Path) -> None:
    """Its label, its files under their names; nothing stays on the frontend."""
    script = cloud.front / "init file.sh"
    script.write_text("#!/bin/sh\n")
    _context(cloud, f"{script}:'start it.sh'")
    assert cloud.hosts["solo1"].content("lv-one-42-11")[32808:32815] == b"CONTEXT"
    assert _cd_file(cloud, "context.sh", tmp_path) == b"HOSTNAME='web-1'\n"
    assert _cd_file(cloud, "start it.sh", tmp_path) == b"#!/bin/sh\n"
    assert not list((cloud.front / "tmp").iterdir())
    assert cloud.steps == [("solo1", "disk-write")]


def test_the_context_is_remade_at_each_boot(cloud: Cloud, tmp_path: Path) -> None:
    """From 5.0 on oned calls the action again, for the same disk."""
    _context(cloud)
    (cloud.front / "vms" / "42" / "context.sh").write_text("HOSTNAME='other'\n")
    _context(cloud)
    assert _cd_file(cloud, "context.sh", tmp_path) == b"HOSTNAME='other'\n"


def test_a_directory_of_files(cloud: Cloud, tmp_path: Path) -> None:
    """FILES may name a directory."""
    directory = cloud.front / "extra"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "file").write_text("deep\n")
    _context(cloud, str(directory))
    assert _cd_file(cloud, "extra/sub/file", tmp_path) == b"deep\n"


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        (["/nowhere/init.sh"], NotFoundError, "the context file /nowhere/init.sh does not exist"),
        (["{front}/vms/42/context.sh"], UsageError, "two files of its context are named"),
        (["http://127.0.0.1:1/init.sh"], UnreachableError, "cannot be fetched"),
        (["http://127.0.0.1:1/"], UsageError, "has no name"),
    ],
)
def test_a_context_that_cannot_be_made_leaves_nothing(
    cloud: Cloud, files: list[str], error: type[CxmError], says: str
) -> None:
    """One sentence, and nothing on the frontend or the host."""
    with pytest.raises(error, match=says):
        _context(cloud, *(file.format(front=cloud.front) for file in files))
    assert not list((cloud.front / "tmp").iterdir())
    assert not cloud.steps


def test_any_of_the_tools_makes_the_cd(tmp_path: Path) -> None:
    """The first that is installed is taken; with none, a sentence says what to install."""
    (tmp_path / "files").mkdir()
    cd = tmp_path / "cd"
    make_cd(System(), str(tmp_path / "files"), str(cd), tools=(("no-such-tool",), ("genisoimage",)))
    assert cd.stat().st_size
    with pytest.raises(CxmError, match="none of no-such-tool to make"):
        make_cd(System(), str(tmp_path / "files"), str(cd), tools=(("no-such-tool",),))


# --- delete -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk.0", ""])
@pytest.mark.parametrize("host", ["solo1", FRONTEND])
def test_deleting_nothing_succeeds(cloud: Cloud, host: str, name: str) -> None:
    """Oned deletes what was never made."""
    run(cloud, "delete", cloud.place(host, name), "42", "0")


@pytest.mark.parametrize("name", ["disk.0", ""])
def test_what_is_in_use_is_refused_and_marked(cloud: Cloud, name: str) -> None:
    """Oned's clean-up reports success whatever we answer: the mark stays on the volume."""
    lv = volume(cloud, "solo1")
    cloud.hosts["solo1"].state.opened.add(lv)
    with pytest.raises(RefusedError, match="in use"):
        run(cloud, "delete", cloud.place("solo1", name), "42", "0")
    assert cloud.hosts["solo1"].content(lv) == DISK
    assert "cxm.state=delete-requested" in cloud.hosts["solo1"].state.lvs[lv].tags


def test_the_end_of_a_vm_leaves_nothing_on_the_frontend(cloud: Cloud) -> None:
    """A resume was given up half-way: one disk is here, the other there."""
    volume(cloud, "solo1", "1")
    _stopped_disk(cloud)
    run(cloud, "delete", cloud.place("solo1"), "42", "0")
    assert not cloud.hosts["solo1"].state.lvs
    assert not cloud.directory(FRONTEND).exists()


def test_a_link_in_place_of_the_directory_is_not_followed(cloud: Cloud) -> None:
    """Another VM's directory is safe."""
    _stopped_disk(cloud)
    cloud.directory(FRONTEND, 43).symlink_to(cloud.directory(FRONTEND))
    with pytest.raises(RefusedError, match="is a link"):
        run(cloud, "delete", cloud.place(FRONTEND, vm=43), "43", "0")
    assert (cloud.directory(FRONTEND) / "disk.0").exists()


# --- mv -----------------------------------------------------------------------------------------


def test_stop_and_resume_bring_everything_back(cloud: Cloud) -> None:
    """Disks, context, memory and files leave the host and come back the same."""
    for disk, content in (("0", DISK), ("1", NOISE * 4), ("11", NOISE[::-1] * 4)):
        volume(cloud, "solo1", disk, content=content)
    volume(cloud, "solo1", "checkpoint", content=MEMORY * 4)
    script = cloud.directory("solo1") / "vm.xml"
    script.write_text("<VM/>")
    script.chmod(0o640)
    before = everything(cloud)
    for source, target in (("solo1", FRONTEND), (FRONTEND, "solo1")):
        for disk in ("disk.0", "disk.1"):
            run(cloud, "mv", *_between(source, target, disk)(cloud))
        run(cloud, "mv", *_between(source, target)(cloud))
        if target == FRONTEND:
            assert not cloud.hosts["solo1"].state.lvs
            assert not cloud.directory("solo1").exists()
    assert everything(cloud) == before
    assert script.stat().st_mode & 0o777 == 0o640


def test_a_stopped_vm_takes_little_room(cloud: Cloud) -> None:
    """Zeros of a disk are holes on the frontend."""
    volume(cloud, "solo1", content=NOISE.ljust(64 * MIB, b"\0"))
    run(cloud, "mv", *_between("solo1", FRONTEND, "disk.0")(cloud))
    kept = cloud.directory(FRONTEND) / "disk.0"
    assert kept.stat().st_size == 64 * MIB
    assert kept.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("disk", ["disk.0", ""])
def test_on_one_host_there_is_nothing_to_move(cloud: Cloud, disk: str) -> None:
    """A frontend that is the host itself, or a migration to where the VM is."""
    volume(cloud, "solo1")
    before = everything(cloud)
    run(cloud, "mv", *_between("solo1", "solo1", disk)(cloud))
    assert everything(cloud) == before
    assert cloud.steps == []


def test_another_system_datastore_on_the_same_host_is_refused(cloud: Cloud) -> None:
    """One system datastore for each volume group."""
    source = cloud.place("solo1", "disk.0")
    with pytest.raises(RefusedError, match="on the same host solo1"):
        run(cloud, "mv", source, source.replace("/0/42", "/100/42"), "42", "1")


@pytest.mark.parametrize("disk", ["disk.0", ""])
def test_hosts_of_one_volume_group_copy_nothing(cloud: Cloud, disk: str) -> None:
    """The disk of the target is that of the source: a copy and a removal would destroy it."""
    volume(cloud, "solo1")
    cloud.hosts["solo2"].uuid = cloud.hosts["solo1"].uuid
    with pytest.raises(RefusedError, match="share their volume group"):
        run(cloud, "mv", *_between("solo1", "solo2", disk)(cloud))
    assert has(cloud, DISK) != []


def test_a_system_datastore_shared_with_the_frontend_is_refused(cloud: Cloud) -> None:
    """The frontend sees the host's link: a stop would write over it."""
    volume(cloud, "solo1")
    cloud.directory(FRONTEND).mkdir(parents=True)
    link = cloud.directory(FRONTEND) / "disk.0"
    link.symlink_to("/dev/LVM_XEN/lv-one-42-0")
    with pytest.raises(RefusedError) as caught:
        run(cloud, "mv", *_between("solo1", FRONTEND, "disk.0")(cloud))
    assert str(link) in caught.value.message
    assert "must not share the system datastore" in caught.value.sentence()
    assert link.is_symlink()
    assert cloud.steps == []


@pytest.mark.parametrize(
    ("source", "target"), [("solo1", FRONTEND), (FRONTEND, "solo1"), ("solo1", "solo2")]
)
def test_a_disk_that_is_nowhere_is_told(cloud: Cloud, source: str, target: str) -> None:
    """Success would mean that the VM has its disk."""
    with pytest.raises(NotFoundError, match=r"disk 0"):
        run(cloud, "mv", *_between(source, target, "disk.0")(cloud))


@pytest.mark.parametrize(
    ("source", "target"), [("solo1", FRONTEND), (FRONTEND, "solo1"), ("solo1", "solo2")]
)
def test_the_place_that_is_moved_from_is_the_truth(cloud: Cloud, source: str, target: str) -> None:
    """What an older move, given up half-way, left at the target is replaced."""
    image(cloud, "web").unlink()
    old = b"old".ljust(4 * MIB, b"\0")
    for place, content in ((source, DISK), (target, old)):
        if place == FRONTEND:
            _stopped_disk(cloud)
            (cloud.directory(FRONTEND) / "disk.0").write_bytes(content)
        else:
            volume(cloud, place, content=content)
    run(cloud, "mv", *_between(source, target, "disk.0")(cloud))
    assert len(has(cloud, DISK)) == 1
    assert not has(cloud, old)


def test_a_missing_volume_group_is_not_taken_for_a_finished_move(cloud: Cloud) -> None:
    """The frontend holds an old copy and the host's disks are out of sight: nothing is known."""
    _stopped_disk(cloud)
    cloud.hosts["solo1"].has_vg = False
    with pytest.raises(NotFoundError, match="LVM_XEN"):
        run(cloud, "mv", *_between("solo1", FRONTEND, "disk.0")(cloud))


def test_a_disk_in_use_is_not_moved(cloud: Cloud) -> None:
    """Its guest runs: the copy would be torn."""
    image(cloud, "web").unlink()
    lv = volume(cloud, "solo1")
    cloud.hosts["solo1"].state.opened.add(lv)
    for target in (FRONTEND, "solo2"):
        with pytest.raises(RefusedError, match="in use"):
            run(cloud, "mv", *_between("solo1", target, "disk.0")(cloud))
    assert has(cloud, DISK) == [f"solo1:{lv}"]


def test_a_full_target_loses_nothing(cloud: Cloud) -> None:
    """The target's volume group is full: the source stays as it was."""
    volume(cloud, "solo1")
    cloud.hosts["solo2"].add_lv("other", 1024)
    before = of_host(cloud.hosts["solo1"])
    with pytest.raises(RefusedError, match="free"):
        run(cloud, "mv", *_between("solo1", "solo2", "disk.0")(cloud))
    assert of_host(cloud.hosts["solo1"]) == before


def test_a_dead_source_is_told(cloud: Cloud) -> None:
    """A standalone host's disks are on it alone."""
    cloud.dead.add("solo2")
    with pytest.raises(UnreachableError, match="solo2 cannot be reached"):
        run(cloud, "mv", *_between("solo2", "solo1", "disk.0")(cloud))


# --- mvds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RAW", "GZIP", "TGZ"])
@pytest.mark.parametrize("host", ["solo1", FRONTEND])
def test_a_persistent_disk_goes_back_and_comes_again(cloud: Cloud, host: str, mode: str) -> None:
    """Saved in any mode, from a host or as a stopped VM, the next clone gives the same disk."""
    if host == FRONTEND:
        _stopped_disk(cloud)
    else:
        volume(cloud, host)
    source = image(cloud, "web")
    source.write_bytes(b"old")
    source.chmod(0o640)
    run(cloud, "mvds", cloud.place(host, "disk.0"), str(source), "42", "1", mode=mode)
    assert source.read_bytes()[:2] == (b"\x1f\x8b" if mode != "RAW" else DISK[:2])
    assert source.stat().st_mode & 0o777 == 0o640
    if host != FRONTEND:
        run(cloud, "delete", cloud.place(host), "42", "0")
    run(cloud, "clone", *_clone(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0") == DISK


def test_only_the_files_of_a_file_system_are_saved(cloud: Cloud) -> None:
    """Mode TGZ keeps the data and leaves the free space."""
    _tar_image(cloud)
    run(cloud, "clone", *_clone(cloud))
    run(cloud, "mvds", *_saved_back(cloud), mode="TGZ")
    with tarfile.open(image(cloud, "web")) as archive:
        names = {member.name.removeprefix("./").rstrip("/") for member in archive}
    assert {"etc/hostname", "srv/noise"} <= names


def test_a_disk_in_use_is_not_saved(cloud: Cloud) -> None:
    """The image stays as it was, and nothing lies beside it."""
    _old_image(cloud)
    cloud.hosts["solo1"].state.opened.add("lv-one-42-0")
    before = everything(cloud)
    with pytest.raises(RefusedError, match="in use"):
        run(cloud, "mvds", *_saved_back(cloud))
    assert everything(cloud) == before


def test_a_new_image_is_made(cloud: Cloud) -> None:
    """3.x saves a disk as a new image when the VM ends."""
    volume(cloud, "solo1")
    target = image(cloud, "new")
    run(cloud, "mvds", cloud.place("solo1", "disk.0"), str(target), "42", "1", mode="RAW")
    assert target.read_bytes() == DISK
    assert target.stat().st_mode & 0o777 == 0o660


# --- monitor ------------------------------------------------------------------------------------


def _datastore(*, bridges: str = "", clusters: str = "<CLUSTERS><ID>100</ID></CLUSTERS>") -> str:
    return (
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>101</ID><NAME>san</NAME>"
        f"{clusters}<TEMPLATE><BRIDGE_LIST>{bridges}</BRIDGE_LIST></TEMPLATE></DATASTORE>"
        "<DATASTORE_LOCATION>/var/lib/one/datastores</DATASTORE_LOCATION></DS_DRIVER_ACTION_DATA>"
    )


def _host(number: int, name: str, *, cluster: int = 100, state: int = 2, mad: str = "cxm") -> str:
    return (
        f"<HOST><ID>{number}</ID><NAME>{name}</NAME><STATE>{state}</STATE>"
        f"<VM_MAD>vmm_{mad}</VM_MAD><CLUSTER_ID>{cluster}</CLUSTER_ID></HOST>"
    )


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SPACE = "USED_MB=4\nFREE_MB=1020\nTOTAL_MB=1024"


@pytest.mark.parametrize("form", ["argument", "dash", "input"])
def test_the_space_of_a_shared_datastore(cloud: Cloud, form: str) -> None:
    """Each version gives the datastore's description in its own way."""
    volume(cloud, "solo1")
    encoded = _encoded(_datastore(bridges="solo1"))
    argv = {"argument": [encoded, "101"], "dash": ["-", "101"], "input": ["101"]}[form]
    said = run(cloud, "monitor", *argv, stdin="" if form == "argument" else encoded)
    assert said == SPACE
    assert cloud.steps == [("solo1", "vg-usage")]


def test_hosts_are_asked_until_one_answers(cloud: Cloud) -> None:
    """A dead host, one of another cluster and one of another hypervisor do not matter."""
    volume(cloud, "solo2")
    hosts = [
        _host(1, "dead"),
        _host(2, "solo1", cluster=0),
        _host(3, "kvm1", mad="kvm"),
        _host(4, "solo2", state=3),
        _host(5, "gone", state=3),
    ]
    cloud.pool = f"<HOST_POOL>{''.join(hosts)}</HOST_POOL>"
    assert run(cloud, "monitor", "101", stdin=_encoded(_datastore())) == SPACE
    assert [host for host, _verb in cloud.steps] == ["dead", "solo2"]


@pytest.mark.parametrize(
    ("pool", "error", "says"),
    [
        ("<HOST_POOL/>", NotFoundError, "has no host to ask"),
        (f"<HOST_POOL>{_host(1, 'dead')}</HOST_POOL>", CxmError, "dead cannot be reached"),
    ],
)
def test_no_host_that_answers_is_a_failure(
    cloud: Cloud, pool: str, error: type[CxmError], says: str
) -> None:
    """Oned keeps its numbers then; it never reads an empty answer."""
    cloud.pool = pool
    with pytest.raises(error, match=says):
        run(cloud, "monitor", "101", stdin=_encoded(_datastore()))


def test_damaged_input_of_monitor_is_told(cloud: Cloud) -> None:
    """Neither base64 nor XML."""
    with pytest.raises(DataError):
        run(cloud, "monitor", "***", "101")
    with pytest.raises(DataError):
        run(cloud, "monitor", "101", stdin="***")


# --- what is not supported ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "action", sorted(name for name, module in ACTIONS["tm"].items() if module == "unsupported")
)
def test_what_is_not_supported_fails_and_says_so(cloud: Cloud, action: str) -> None:
    """Oned believes success: nothing unsupported ever reports it."""
    with pytest.raises(RefusedError, match=rf"does not support .*\({action}\)"):
        run(cloud, action, cloud.place("solo1", "disk.0"), "1", "42", "1")
