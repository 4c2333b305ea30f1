# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What goes wrong on a real host is told in one clear sentence, and leaves nothing behind."""

# Requirements: the lab with solo1, cxm installed on it.

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from cxm.errors import CxmError
from lab import faults
from lab.oned import scenarios
from lab.oned.cloud import VmView
from tests.lab.sites import HOST, Site

extensive = pytest.mark.extensive

_KEYS = "/var/lib/one/.ssh/authorized_keys"
Spoil = Callable[[Site], AbstractContextManager[None]]


@contextmanager
def dead(site: Site) -> Iterator[None]:
    """The host stands still: its packets vanish."""
    site.host.hang()
    yield
    site.host.resume()
    site.host.wait_for_ssh()
    site.host.set_clock()


@contextmanager
def locked_out(site: Site) -> Iterator[None]:
    """The host does not know the frontend's key."""
    site.host.run(["mv", _KEYS, f"{_KEYS}.away"])
    yield
    site.host.run(["mv", f"{_KEYS}.away", _KEYS])


@contextmanager
def without_group(site: Site) -> Iterator[None]:
    """The volume group is gone."""
    site.host.run(["vgrename", "LVM_XEN", "ELSEWHERE"])
    yield
    site.host.run(["vgrename", "ELSEWHERE", "LVM_XEN"])


@contextmanager
def full_group(site: Site) -> Iterator[None]:
    """Another's volume takes nearly all of the volume group."""
    site.host.run(["lvcreate", "-qq", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", "big", "LVM_XEN"])
    site.host.run(["lvreduce", "-qq", "-y", "-f", "-L", "-100m", "LVM_XEN/big"])
    yield
    site.host.run(["lvremove", "-qq", "-y", "LVM_XEN/big"])


def fails(site: Site, image_file: str | None = None, *, size: str = "256") -> tuple[int, VmView]:
    """Register an image and deploy a VM with it, which fails; the image and the VM."""
    image = site.cloud.register_image(
        image_file or site.parts.image_file,
        f'NAME="failing"\nTYPE="OS"\nDEV_PREFIX="xvd"\nLV_SIZE="{size}"\nFSTYPE="ext4"\n',
    )
    site.cloud.wait_image(image)
    context = scenarios.context_of(site.cloud, "failing")
    vm = site.cloud.create_vm(site.parts.vm_template("failing", image, context=context))
    return image, scenarios.await_failure(site.cloud, vm)


def forget(site: Site, image: int, view: VmView) -> None:
    """Delete the VM and its image."""
    site.cloud.delete(view.id)
    site.cloud.wait(view.id, "DONE")
    site.cloud.settle()
    site.cloud.delete_image(image)


def assert_sentence(view: VmView, says: str) -> None:
    """The user sees one sentence, without a traceback, that says this."""
    assert re.search(says, view.error), view.error
    assert "\n" not in view.error
    assert "Traceback" not in view.error


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(without_group, "solo1: the volume group LVM_XEN does not exist", id="no VG"),
        pytest.param(full_group, r"LVM_XEN has \d+ MiB free, but lv-one-\d+-0 needs 256 MiB",
                     id="full VG", marks=extensive),
        pytest.param(locked_out, "solo1 cannot be reached by ssh.*Permission denied",
                     id="wrong key", marks=extensive),
        pytest.param(dead, "solo1 cannot be reached by ssh.*timed out", id="dead host",
                     marks=extensive),
    ],
)  # fmt: skip
def test_a_host_that_cannot(site: Site, spoil: Spoil, says: str) -> None:
    """Its cause is named, and when it is mended the VM can be deleted."""
    with spoil(site):
        image, view = fails(site)
    assert_sentence(view, says)
    forget(site, image, view)
    site.finish()


def cut_short(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One byte in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, pytest.param(cut_short, marks=extensive)],
    ids=["a flipped bit", "cut short"],
)
def test_a_damaged_image(site: Site, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """An archive that is cut short or corrupt becomes no disk."""
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(damage(Path(site.parts.image_file).read_bytes()))
    image, view = fails(site, str(damaged))
    assert_sentence(view, r"image \d+ \('failing'\): solo1: the image is damaged: gzip")
    forget(site, image, view)
    site.finish()


def test_a_connection_that_breaks_in_mid_stream(site: Site) -> None:
    """It is given up after half a minute; when the network is back nothing is left."""
    cloud = site.cloud
    image = scenarios.register(cloud, site.parts, "cut")
    vm = cloud.create_vm(site.parts.vm_template("cut", image, context=""))
    site.host.wait_until(["pgrep", "-x", "tar"], timeout_s=240, pause_s=0.1)
    with suppress(CxmError):  # our own connection breaks, too
        faults.cut(site.lab, HOST, "net")
    view = scenarios.await_failure(cloud, vm)
    faults.heal(site.lab, HOST)
    site.host.wait_for_ssh()
    assert_sentence(view, "solo1 cannot be reached by ssh, or the connection broke during disk-")
    site.host.wait_until(["sh", "-c", "! pgrep -f '[c]xm-helper disk-write'"], timeout_s=240)
    forget(site, image, view)
    site.finish()
