# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The reading of xl's output."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from cxm.errors import CommandError, DataError
from cxm.run import Result, System
from cxm.xen import xl

ERRORS = Path(__file__).parents[1] / "data" / "xl-4.17-errors.txt"

_HEAD = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    "   UUID                            Reason-Code\tSecurity Label\n"
)
_UUID = "0b5ff1b9-a6ba-8c44-9a44-00000000002a"


def _row(name: str, state: str, reason: str = "-", *, domid: int = 3) -> str:
    return (
        f"{name:<40} {domid:5} {104:5} {1:5}     {state}  {1.5:8.1f} {_UUID} {reason:>8}      -\n"
    )


def test_reads_one_domain() -> None:
    """Every column of a running domain is read."""
    (domain,) = xl.parse_list(_HEAD + _row("one-42", "-b----"))
    assert domain == xl.Domain("one-42", 3, 104, 1, "-b----", 1.5, _UUID, None)
    assert domain.alive
    assert not domain.paused


def test_rows_of_a_real_xen() -> None:
    """What xl 4.17 printed at moments of guests' lives is read as what it was."""
    text = (ERRORS.parent / "xl-4.17-list.txt").read_text(encoding="utf-8")
    seen = [
        (domain.state, domain.reason, domain.alive, domain.powered_off, domain.crashed)
        for domain in xl.parse_list(text)
    ]
    assert seen == [
        ("r-----", None, True, False, False),  # Domain-0
        ("------", None, True, False, False),
        ("-b----", None, True, False, False),
        ("---s--", 0, False, True, False),
        ("--psr-", 1, False, False, False),
        ("--p---", None, True, False, False),  # being made, its memory not yet there
        ("--p---", None, True, False, False),
        ("---sc-", 3, False, False, True),
        ("--psc-", 3, False, False, True),
    ]


@pytest.mark.parametrize("name", ["a" * 128, "(null)", "with  two blanks", "7", "--3.vm.home.net"])
def test_reads_any_name(name: str) -> None:
    """Long names and other people's odd names are read whole."""
    (domain,) = xl.parse_list(_HEAD + _row(name, "r-----"))
    assert domain.name == name


def test_tells_how_a_domain_ended() -> None:
    """Off by the guest, crashed, rebooting and dying are told apart."""
    text = _HEAD + "".join(
        (
            _row("off", "---s--", "0"),
            _row("crashed", "---sc-", "3"),
            _row("reboots", "---sr-", "1"),
            _row("dying", "-----d"),
        )
    )
    off, crashed, reboots, dying = xl.parse_list(text)
    assert off.powered_off
    assert not off.alive
    assert crashed.crashed
    assert not reboots.crashed
    assert not reboots.powered_off
    assert not reboots.alive
    assert dying.dying
    assert not dying.alive


@pytest.mark.parametrize("name", ["one-42--incoming", "one-42--migratedaway"])
def test_half_of_a_migration_is_not_alive(name: str) -> None:
    """A domain under a name of a migration never counts as running."""
    (domain,) = xl.parse_list(_HEAD + _row(name, "r-----"))
    assert not domain.alive


@pytest.mark.parametrize("text", ["", "xl: cannot connect", _HEAD + "garbage\n"])
def test_refuses_what_it_cannot_read(text: str) -> None:
    """Output of another shape is an error, never an empty list."""
    with pytest.raises(DataError):
        xl.parse_list(text)


class Shell(System):
    """A runner that knows one answer."""

    def __init__(self, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        self.ran: list[tuple[str, ...]] = []
        self._answer = (stdout, stderr, code)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        self.ran.append(tuple(argv))
        stdout, stderr, code = self._answer
        if code not in ok:
            raise CommandError("failed", argv=tuple(argv), exit_code=code, stderr=stderr)
        return Result(tuple(argv), code, stdout, stderr, 0.0)


PS = """\
      1     0 init.scope /sbin/init
    942     0 run-r1.scope /usr/lib/xen-4.17/bin/xl restore -p /etc/xen/vm/one /dev/vg/lv-one-1
    943     0 run-r2.scope /usr/lib/xen-4.17/bin/xl create -q /etc/xen/vm/one
    944     0 xendomains.service xl create -q /etc/xen/auto/one
    945     0 - xl create -q /etc/xen/vm/one0
    946     0 - vi /etc/xen/vm/one create x
    947     0 - xl save 3 /etc/xen/vm/one
    948     0 - xl list
    949  9869 - xl create -q /etc/xen/vm/one
    950     0 cxm-acloud00-4-1504.scope /usr/lib/xen-4.17/bin/xl migrate-receive
    951     0 cxm-acloud00-42-7.scope /usr/lib/xen-4.17/bin/xl migrate-receive
    952  9869 cxm-acloud00-4-9.scope xl migrate-receive
"""


def test_keepers_are_found_exactly() -> None:
    """Root's processes that keep a domain are told from others, and one's from one0's."""
    paths = ["/etc/xen/vm/one", "/etc/xen/auto/one"]
    assert xl.keepers(Shell(PS), paths) == [942, 943, 944]
    assert xl.keepers(Shell(PS), ["/etc/xen/vm/one0"]) == [945]
    assert xl.keepers(Shell(PS), ["/etc/xen/vm/on"]) == []
    assert xl.keepers(Shell(PS), [], "cxm-acloud00-4") == [950]


def _recorded() -> dict[str, str]:
    parts = re.split(r"^=== (\w+)\n", ERRORS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("name", "cause", "hint"),
    [
        ("memory", "can't allocate low memory for domain: Out of memory", "free memory"),
        ("bridge", "/etc/xen/scripts/vif-bridge online", "set BRIDGE"),
        ("vnc", "device model /usr/libexec/xen-qemu-system-i386 is not exec", "qemu-system-xen"),
        ("hvm", "failed to read BIOS file: No such file", "qemu-system-xen"),
        ("kernel", "no loader found: Invalid kernel", "not a kernel"),
        ("nokernel", "failed to open file '/root/nothere': No such file", None),
        ("disk", "Disk vdev=xvda failed to stat: /dev/LVM_XEN/t9", None),
        ("vda", "Invalid or unsupported virtual disk identifier vda", None),
        ("type", 'Domain with name "e1" already exists', None),
    ],
)
def test_the_cause_is_told(name: str, cause: str, hint: str | None) -> None:
    """Of the many lines that xl prints, the first is the cause; some have a hint."""
    with pytest.raises(CommandError) as caught:
        xl.create(Shell(stderr=_recorded()[name], code=3), "/etc/xen/vm/x")
    assert caught.value.message.startswith(f"xl create failed: {cause}")
    assert (hint or "") in (caught.value.hint or "")


def test_a_failure_without_a_known_line_is_told_as_it_is() -> None:
    """When xl says something else, that is kept."""
    with pytest.raises(CommandError, match="failed"):
        xl.create(Shell(stderr=_recorded()["cpus"], code=1), "/etc/xen/vm/x")


def test_a_keeper_has_a_scope_of_its_own() -> None:
    """What starts a domain outlives the service or session that asked for it."""
    shell = Shell()
    xl.create(shell, "/etc/xen/vm/x")
    assert shell.ran[0][:5] == ("systemd-run", "--scope", "--collect", "--quiet", "--")


def test_destroying_what_is_gone_is_success() -> None:
    """A domain that ended by itself in the meantime is what was wanted."""

    class Gone(Shell):
        def run(
            self,
            argv: Sequence[str],
            *,
            stdin: bytes | None = None,
            timeout_s: float = 60.0,
            ok: Sequence[int] = (0,),
        ) -> Result:
            if argv[1] == "list":
                return Result(tuple(argv), 0, _HEAD + _row("other", "r-----", domid=4), "", 0.0)
            raise CommandError("gone", stderr="libxl: error: x.c:1:f: Domain 3:Non-existant domain")

    xl.destroy(Gone(), 3)
    with pytest.raises(CommandError):
        xl.destroy(Gone(), 4)


_INFO = """host                   : solo1
nr_cpus                : 1
cpu_mhz                : 2596.150
total_memory           : 1151
free_memory            : 751
xen_version            : 4.17.7
xen_commandline        : console=com1 com1=115200 dom0_mem=384M,max:384M
xend_config_format     : 4
"""


def test_reads_the_machine() -> None:
    """What Xen says of itself, as a Debian 12 node printed it."""
    assert xl.parse_info(_INFO) == xl.Info("4.17.7", 1, 2596, 1151, 751, dom0_fixed=True)
    assert not xl.parse_info(_INFO.replace("dom0_mem=", "x=")).dom0_fixed


def test_refuses_what_is_no_information() -> None:
    """An error text is not taken for a machine."""
    with pytest.raises(DataError, match="xl info"):
        xl.parse_info("xencall: error: Could not obtain handle on privileged command interface")
