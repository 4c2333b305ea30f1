# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A stub's path says which action it is, and oned's input is understood in each of its forms."""

import base64
import errno
import io
import os

import pytest

from cxm.errors import UsageError
from cxm.one import action
from cxm.one.version import OneVersion


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/one/remotes/tm/cxm/clone", ("/var/lib/one/remotes", "tm", "clone")),
        ("/var/lib/one/remotes/tm/cxm_local/mv", ("/var/lib/one/remotes", "tm", "mv")),
        ("/var/tmp/one/vmm/cxm/deploy", ("/var/tmp/one", "vmm", "deploy")),
    ],
)
def test_path_names_the_action(path: str, expected: tuple[str, str, str]) -> None:
    """Kind and action come from where the stub lies."""
    assert action.split_path(path) == expected


@pytest.mark.parametrize(
    "path", ["/x/tm/cxm/nothing", "/x/datastore/cxm/clone", "clone", "/clone", "/"]
)
def test_other_paths_are_refused(path: str) -> None:
    """A file that is no action of ours runs nothing."""
    with pytest.raises(UsageError):
        action.split_path(path)


@pytest.mark.parametrize(
    "sent",
    [
        "<VM><ID>4</ID></VM>",
        "\n  <VM><ID>4</ID></VM>\n",
        "name = 'one-4'\nmemory = '128'\n",
        "",
    ],
)
def test_plain_input_stays_as_it_is(sent: str) -> None:
    """What came over ssh is not encoded."""
    assert action.Call("vmm", "deploy", (), io.StringIO(sent)).read_input() == sent


@pytest.mark.parametrize(
    ("kind", "argv", "begins"),
    [
        (
            "vmm",
            ("/ds/0/42/deployment.0", "node1", "42", "node1"),
            "VM 42: deploy failed on {host}",
        ),
        ("tm", ("node1:/ds/0/42/disk.0", "42", "0"), "deploy failed on {host}"),
        ("vmm", (), "deploy failed on {host}"),
    ],
)
def test_error_of_the_system_names_machine_and_vm(
    kind: str, argv: tuple[str, ...], begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Actions run on the frontend and on hosts: the sentence says where a disk was full."""
    error = OSError(errno.ENOSPC, "No space left on device", "/ds/0/42/deployment.0.new")
    assert action._fail(OneVersion(7, 4), action.Place(kind, "deploy", argv), error) == 1
    said = capsys.readouterr().err
    assert said.startswith(begins.format(host=os.uname().nodename))
    assert said.endswith(": No space left on device: /ds/0/42/deployment.0.new \n")


@pytest.mark.parametrize("width", [60, 10_000])
def test_base64_input_is_decoded(width: int) -> None:
    """What came from a local action is base64, in 5.x with line breaks."""
    text = base64.b64encode(b"<VM><ID>4</ID><NAME>\xc3\xa9</NAME></VM>" * 5).decode()
    lines = "\n".join(text[at : at + width] for at in range(0, len(text), width))
    got = action.Call("tm", "premigrate", (), io.StringIO(lines)).read_input()
    assert got.startswith("<VM><ID>4</ID><NAME>\u00e9</NAME>")
