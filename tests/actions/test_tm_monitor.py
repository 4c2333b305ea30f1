# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The space of a shared datastore; and what is not supported fails and says so."""

import base64

import pytest

from cxm.errors import CxmError, DataError, NotFoundError, RefusedError
from cxm.one.action import ACTIONS
from tests.fakes.hosts import Cloud, run
from tests.fakes.transfers import volume


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


@pytest.mark.parametrize(
    "action", sorted(name for name, module in ACTIONS["tm"].items() if module == "unsupported")
)
def test_what_is_not_supported_fails_and_says_so(cloud: Cloud, action: str) -> None:
    """Oned believes success: nothing unsupported ever reports it."""
    with pytest.raises(RefusedError, match=rf"does not support .*\({action}\)"):
        run(cloud, action, cloud.place("solo1", "disk.0"), "1", "42", "1")
