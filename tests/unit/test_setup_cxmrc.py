# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup keeps what is in a cxmrc: the cloud's id, comments, an original's settings."""

import pytest

from cxm import config
from cxm.config import Mode, Owner
from cxm.errors import ConfigError, UsageError
from cxm.setup import cxmrc
from tests.unit.test_config import ORIGINAL


def test_cloud_gets_its_id_once() -> None:
    """A new file gets an id of its own; a second run keeps it."""
    first = cxmrc.for_frontend(None, "cxmrc", {})
    cloud = cxmrc.cloud_of(first.text, "cxmrc")
    assert cloud not in ("unconfigured", cxmrc.new_cloud_id())
    assert cxmrc.for_frontend(first.text, "cxmrc", {}) == first


def test_sample_without_an_id_gets_one_and_keeps_its_comments() -> None:
    """The file that the package shows can be put in place by hand."""
    sample = config.sample(config.FrontendConfig, {}) + "# my note\n"
    written = cxmrc.for_frontend(sample, "cxmrc", {"MODE": "RAW"})
    settings, _ = config.frontend(written.text, "cxmrc")
    assert settings.mode is Mode.RAW
    assert settings.cloud_id != "unconfigured"
    assert written.text.endswith("# my note\n")
    assert written.text.count("MODE=") == 1


def test_original_is_converted_with_its_settings() -> None:
    """What shaped requests is kept, what root trusts is named for the nodes, the rest is said."""
    text = ORIGINAL.replace("DEBUG=0", "DEBUG=0\nMY_OWN=x")
    written = cxmrc.for_frontend(text, "cxmrc", {})
    settings, warnings = config.frontend(written.text, "cxmrc")
    assert warnings == []
    assert (settings.mode, settings.default_lv_size, settings.default_fstype) == (
        Mode.GZIP, 20480, "ext4",
    )  # fmt: skip
    assert settings.vm_fqdn_template == "%V.vm.example.org"
    assert written.converted
    assert written.moved == {"VG_NAME": "VGSAN", "LV_PREFIX": "lv-one"}
    assert set(written.dropped) == {"XPATH", "MY_OWN"}
    again = cxmrc.for_frontend(written.text, "cxmrc", {})
    assert (again.text, again.converted) == (written.text, False)


def test_node_serves_a_further_cloud() -> None:
    """One node may be used by two clouds: neither loses it."""
    text = cxmrc.for_node(None, "cxmrc", {"VG_NAME": "vg0"}, "cloudone1")
    text = cxmrc.for_node(text, "cxmrc", {}, "cloudtwo2")
    settings, _ = config.node(text, "cxmrc")
    assert settings.clouds == ("cloudone1", "cloudtwo2")
    assert settings.vg_name == "vg0"
    assert cxmrc.for_node(text, "cxmrc", {}, "cloudone1") == text


def test_last_of_a_doubled_setting_is_the_one_that_changes() -> None:
    """It is the one that counts."""
    assert cxmrc.set_values("A=1\nA=2\n#B=3\n", {"A": "9", "B": "8", "C": "7"}) == (
        'A=1\nA="9"\nB="8"\nC="7"\n'
    )


@pytest.mark.parametrize("word", ["MODE", "VG_NAME=x", "NO_SUCH=1"])
def test_set_takes_only_settings_of_this_side(word: str) -> None:
    """--set of another file's key says where it belongs."""
    with pytest.raises(UsageError):
        cxmrc.assignments([word], Owner.FRONTEND)


def test_impossible_value_is_refused_before_anything_is_written() -> None:
    """The new text is read back first."""
    with pytest.raises(ConfigError, match="MODE"):
        cxmrc.for_frontend(None, "cxmrc", {"MODE": "FAST"})
    with pytest.raises(ConfigError, match="VG_NAME"):
        cxmrc.for_node(None, "cxmrc", {"VG_NAME": 'a"b'}, "cloudone1")
