# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""oned's words become typed requests, and words that contradict each other are refused."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cxm.errors import UsageError
from cxm.names import VmId
from cxm.one import args
from cxm.one.args import ContextFile, Directory, DiskPlace, FilePlace
from cxm.one.version import OneVersion

SYS = "/var/lib/one/datastores/0/42"
VM = VmId(42)


def disk(host: str, number: int = 1) -> DiskPlace:
    """A disk of VM 42."""
    return DiskPlace(host, SYS, number)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("fe:/var/lib/one/datastores/1/abc", "/var/lib/one/datastores/1/abc"),
        ("fe.example.com:/opt//ds/1/abc", "/opt/ds/1/abc"),
        ("/var/lib/one/datastores/1/a:b", "/var/lib/one/datastores/1/a:b"),
        ("http://web/image.tgz", "http://web/image.tgz"),
        ("https://web:8443/a/b?c=d", "https://web:8443/a/b?c=d"),
        ("fe:/images/with:colon", "/images/with:colon"),
    ],
)
def test_an_image_is_a_path_or_an_address(source: str, expected: str) -> None:
    """The host that oned puts a path is taken off; a path with a colon has none."""
    got = args.clone([source, f"node1:{SYS}/disk.1", "42", "1"])
    assert got == args.Clone(expected, disk("node1"), VM)


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_a_kernel_is_no_disk(name: str) -> None:
    """From 4.0 on clone also copies the files of FILE datastores."""
    got = args.clone(["fe:/ds/2/vmlinuz", f"node1:{SYS}/{name}", "42", "2"])
    assert got.target == FilePlace("node1", SYS, name)


def test_disk_1_is_not_disk_10() -> None:
    """Numbers are taken whole."""
    got = args.clone(["fe:/a", f"node1:{SYS}/disk.10", "42", "1"])
    assert got.target == disk("node1", 10)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fe:/a", f"node1:{SYS}/disk.1", "42"],
        ["fe:/a", f"node1:{SYS}/disk.1", "42", "1", "more"],
        ["fe:/a", f"node1:{SYS}/disk.1", "4", "1"],
        ["fe:/a", f"node1:{SYS}/disk.1", "042", "1"],
        ["fe:/a", f"node1:{SYS}/disk.1", "", "1"],
        ["fe:/a", f"node1:{SYS}/disk.01", "42", "1"],
        ["fe:/a", f"node1:{SYS}/disk.x", "42", "1"],
        ["fe:/a", f"node1:{SYS}/disk.", "42", "1"],
        ["fe:/a", f"node1:{SYS}/-rf", "42", "1"],
        ["fe:/a", f"node1:{SYS}/a b", "42", "1"],
        ["fe:/a", f"node1:{SYS}", "42", "1"],
        ["fe:/a", f"{SYS}/disk.1", "42", "1"],
        ["fe:/a", "node1:disk.1", "42", "1"],
        ["fe:/a", f"-oProxyCommand=x:{SYS}/disk.1", "42", "1"],
        ["fe:/a", f":{SYS}/disk.1", "42", "1"],
        ["fe:/a", "node1:/var/lib/one/datastores/0/42/../43/disk.1", "42", "1"],
        ["fe:relative", f"node1:{SYS}/disk.1", "42", "1"],
        ["fe:", f"node1:{SYS}/disk.1", "42", "1"],
        ["relative", f"node1:{SYS}/disk.1", "42", "1"],
    ],
)
def test_clone_refuses_what_it_cannot_mean(argv: Sequence[str]) -> None:
    """Nothing is guessed: another VM's directory, a strange name, a missing word."""
    with pytest.raises(UsageError):
        args.clone(argv)


def test_empty_disks() -> None:
    """3.6 gives 0 as the datastore, and mkswap has no format."""
    assert args.mkimage(["512", "ext3", f"node1:{SYS}/disk.1", "42", "0"]) == args.Blank(
        512, "ext3", disk("node1"), VM
    )
    assert args.mkswap(["512", f"node1:{SYS}/disk.1", "42", "0"]) == args.Blank(
        512, "swap", disk("node1"), VM
    )


@pytest.mark.parametrize("size", ["0", "-5", "1G", "", "1.5", "٣"])
def test_an_empty_disk_needs_a_size(size: str) -> None:
    """The size comes in whole MiB."""
    with pytest.raises(UsageError):
        args.mkswap([size, f"node1:{SYS}/disk.1", "42", "0"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/v/42/context.sh"], [("/v/42/context.sh", "")]),
        (["/v/42/context.sh", "/srv/init.sh"], [("/v/42/context.sh", ""), ("/srv/init.sh", "")]),
        (["/ds/2/abc:'init.sh'"], [("/ds/2/abc", "init.sh")]),
        (["/ds/2/abc:init.sh"], [("/ds/2/abc", "init.sh")]),
        (["/ds/2/abc:'my", "first", "script'"], [("/ds/2/abc", "my first script")]),
        (["/ds/2/abc:'a", "b'", "/c"], [("/ds/2/abc", "a b"), ("/c", "")]),
        (["/ds/2/abc:it's"], [("/ds/2/abc", "it's")]),
        (["http://web/a:80/init.sh"], [("http://web/a:80/init.sh", "")]),
        (["/v//42/context.sh"], [("/v/42/context.sh", "")]),
    ],
)
def test_files_of_the_context(words: list[str], expected: list[tuple[str, str]]) -> None:
    """A file may be renamed; the quotes are gone where a shell split oned's line (up to 5.6)."""
    got = args.context([*words, f"node1:{SYS}/disk.1", "42", "0"])
    assert got == args.ContextDisk(
        tuple(ContextFile(*file) for file in expected), disk("node1"), VM
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["context.sh"],
        ["/ds/2/abc:'../../etc/passwd'"],
        ["/ds/2/abc:'..'"],
        ["/ds/2/abc:''"],
        ["/ds/2/abc:"],
    ],
)
def test_files_of_the_context_are_plain_names(words: list[str]) -> None:
    """A name with a slash would be written elsewhere."""
    with pytest.raises(UsageError):
        args.context([*words, f"node1:{SYS}/disk.1", "42", "0"])


def test_delete_is_of_a_disk_or_of_all() -> None:
    """The disks are deleted first, then the directory."""
    assert args.delete([f"node1:{SYS}/disk.1", "42", "1"]).target == disk("node1")
    assert args.delete([f"node1:{SYS}", "42", "0"]).target == Directory("node1", SYS)
    assert args.delete([f"node1:{SYS}/", "42", "0"]).target == Directory("node1", SYS)
    with pytest.raises(UsageError):
        args.delete([f"node1:{SYS}/kernel", "42", "0"])


def test_the_directory_of_vm_4_is_not_that_of_vm_42() -> None:
    """A directory must end in the VM's own number."""
    with pytest.raises(UsageError, match="not the directory of VM 4"):
        args.delete([f"node1:{SYS}/disk.0", "4", "1"])
    with pytest.raises(UsageError):
        args.delete([f"node1:{SYS}", "4", "1"])


def test_mv_is_of_a_disk_or_of_the_directory() -> None:
    """Both places must be of the same kind, and of the same disk."""
    old = "/var/lib/one/datastores/100/42"
    assert args.move([f"a:{SYS}/disk.1", f"b:{SYS}/disk.1", "42", "1"]) == args.MoveDisk(
        disk("a"), disk("b"), VM
    )
    assert args.move([f"a:{old}", f"b:{SYS}", "42", "0"]) == args.MoveDirectory(
        Directory("a", old), Directory("b", SYS), VM
    )
    for source, target in (
        (f"a:{SYS}/disk.1", f"b:{SYS}/disk.2"),
        (f"a:{SYS}/disk.1", f"b:{SYS}"),
        (f"a:{SYS}", f"b:{SYS}/disk.1"),
        (f"a:{SYS}/kernel", f"b:{SYS}/kernel"),
    ):
        with pytest.raises(UsageError):
            args.move([source, target, "42", "0"])


@pytest.mark.parametrize("image", ["/ds/1/abc", "fe:/ds/1/abc"])
def test_a_disk_is_saved_into_a_file(image: str) -> None:
    """SOURCE comes plain; a host before it is ours."""
    assert args.save_back([f"a:{SYS}/disk.1", image, "42", "1"]) == args.SaveBack(
        disk("a"), "/ds/1/abc", VM
    )


def test_nothing_is_saved_to_a_web_server() -> None:
    """3.x may have made the disk from an address."""
    with pytest.raises(UsageError, match="nothing can be saved to a web server"):
        args.save_back([f"a:{SYS}/disk.1", "http://web/abc", "42", "1"])


@pytest.mark.parametrize(
    ("argv", "version"),
    [
        (["b", "a", SYS, "42", "0", "PFZNPg=="], OneVersion(3, 8)),
        (["a", "b", SYS, "42", "0", "PFZNPg=="], OneVersion(4, 0)),
        (["a", "b", SYS, "42", "0"], OneVersion(5, 10)),
        (["a", "b", f"{SYS}/", "42", "0", "qcow2"], OneVersion(7, 4)),
    ],
)
def test_the_hosts_of_a_migration(argv: list[str], version: OneVersion) -> None:
    """3.8 gives the target first."""
    assert args.migration(argv, version) == args.Migration("a", "b", SYS, VM)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["101"], args.Monitor(101, None)),
        (["-", "101"], args.Monitor(101, None)),
        (["PERTPg==", "101"], args.Monitor(101, "PERTPg==")),
    ],
)
def test_the_three_forms_of_monitor(argv: list[str], expected: args.Monitor) -> None:
    """The datastore's XML is an argument up to 6.6, the input later."""
    assert args.monitor(argv) == expected


@pytest.mark.parametrize(
    ("parse", "argv"),
    [
        (args.monitor, []),
        (args.monitor, ["x"]),
        (args.monitor, ["a", "b", "1"]),
        (args.delete, []),
        (args.move, ["a"]),
        (args.save_back, []),
        (args.mkimage, ["1"]),
        (args.context, ["1", "2", "3"]),
        (lambda argv: args.migration(argv, OneVersion(7, 4)), ["a", "b"]),
    ],
)
def test_too_few_words_are_refused(
    parse: Callable[[Sequence[str]], object], argv: Sequence[str]
) -> None:
    """The sentence says what the action takes."""
    with pytest.raises(UsageError, match="takes"):
        parse(argv)


RECORDED = sorted((Path(__file__).parents[1] / "data").glob("oned-calls-*.json"))
PARSERS: dict[str, Callable[[Sequence[str]], object]] = {
    "clone": args.clone,
    "ln": args.clone,
    "mkimage": args.mkimage,
    "mkswap": args.mkswap,
    "context": args.context,
    "delete": args.delete,
    "mv": args.move,
    "mvds": args.save_back,
}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_call_that_was_recorded_from_oned_is_understood(path: Path) -> None:
    """Real OpenNebula's own words, with the names of places as the recording has them."""
    real = {"VAR": "/var/lib/one", "SYSTEM": "0", "IMAGES": "1"}
    seen = set()
    for calls in json.loads(path.read_text())["steps"].values():
        for call in calls:
            directory, _slash, action = call.get("script", "").rpartition("/")
            if directory.endswith("/tm/cxm") and action in PARSERS:
                words = [re.sub("VAR|SYSTEM|IMAGES", lambda m: real[m[0]], w) for w in call["argv"]]
                PARSERS[action](words)
                seen.add(action)
    assert seen == set(PARSERS)
