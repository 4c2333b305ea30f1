# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What monitord hands its client is understood, and what cannot be used is said."""

import pytest

from cxm.errors import ConfigError
from cxm.one.im import settings
from cxm.one.im.channel import Kind

WHOLE = """<MONITOR_CONFIGURATION><DATASTORE_LOCATION><![CDATA[/srv/ds]]></DATASTORE_LOCATION>
<NETWORK><ADDRESS><![CDATA[::]]></ADDRESS><MONITOR_ADDRESS><![CDATA[auto]]></MONITOR_ADDRESS>
<PORT><![CDATA[4124]]></PORT><PUBKEY><![CDATA[]]></PUBKEY></NETWORK>
<PROBES_PERIOD><BEACON_HOST>10</BEACON_HOST><SYSTEM_HOST>60</SYSTEM_HOST>
<MONITOR_HOST>20</MONITOR_HOST><STATE_VM>7</STATE_VM><MONITOR_VM>15</MONITOR_VM>
<SYNC_STATE_VM>90</SYNC_STATE_VM></PROBES_PERIOD><HOST_ID>12</HOST_ID></MONITOR_CONFIGURATION>"""
SSH = {"SSH_CLIENT": "10.0.0.1 50000 22"}


def test_everything_is_taken_over() -> None:
    """Address from the ssh connection, periods and place of the datastores as given."""
    conf = settings.parse(WHOLE, "solo1", SSH)
    assert (conf.address, conf.port, conf.host_id, conf.key) == ("10.0.0.1", 4124, 12, None)
    assert conf.periods == {
        Kind.BEACON_HOST: 10,
        Kind.SYSTEM_HOST: 60,
        Kind.MONITOR_HOST: 20,
        Kind.STATE_VM: 7,
        Kind.MONITOR_VM: 15,
    }
    assert conf.sync_every_s == 90
    assert conf.datastores == "/srv/ds"


def test_what_a_version_does_not_send_has_its_default() -> None:
    """An empty or senseless period is no period of zero."""
    short = (
        "<C><NETWORK><MONITOR_ADDRESS>fe</MONITOR_ADDRESS><PORT>1</PORT></NETWORK>"
        "<PROBES_PERIOD><STATE_VM>0</STATE_VM><MONITOR_VM/></PROBES_PERIOD><HOST_ID>1</HOST_ID></C>"
    )
    conf = settings.parse(short, "solo1", {})
    assert conf.periods[Kind.STATE_VM] == 5
    assert conf.periods[Kind.MONITOR_VM] == 30
    assert conf.sync_every_s == 180
    assert conf.datastores == "/var/lib/one/datastores"
    assert conf.address == "fe"


@pytest.mark.parametrize(
    ("xml", "environ", "words"),
    [
        ("", SSH, "not XML"),
        (WHOLE, {}, "no ssh connection"),
        (WHOLE.replace("4124", "x"), SSH, "no number"),
        (WHOLE.replace(">12<", "><"), SSH, "no number"),
        (WHOLE.replace("<PUBKEY><![CDATA[", "<PUBKEY><![CDATA[nonsense"), SSH, "PUBKEY"),
    ],
)
def test_what_cannot_be_used_is_said(xml: str, environ: dict[str, str], words: str) -> None:
    """One sentence, before anything is started."""
    with pytest.raises(ConfigError, match=words):
        settings.parse(xml, "solo1", environ)
