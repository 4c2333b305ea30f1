# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the XML in which each version of oned writes VMs, images, datastores and hosts."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from lab.oned import states
from lab.oned.model import OWNER, Datastore, History, Host, Image, Vm
from lab.oned.place import Place
from lab.oned.profiles import Profile
from lab.oned.templates import Template, cdata, to_xml

_RIGHTS = tuple(f"{who}_{right}" for who in ("OWNER", "GROUP", "OTHER") for right in "UMA")
# The number that history records give for what ended them (5.0 and later).
_ACTIONS = {
    "": 0,
    "migrate": 1,
    "live-migrate": 2,
    "resume": 12,
    "undeploy": 5,
    "stop": 9,
    "suspend": 10,
    "poweroff": 19,
    "terminate": 27,
    "delete": 16,
}
_MAX_ERROR = 100


def _head(number: int, name: str, group: int) -> str:
    granted = {"OWNER_U", "OWNER_M"} | ({"GROUP_U"} if group else set())
    rights = "".join(f"<{right}>{int(right in granted)}</{right}>" for right in _RIGHTS)
    return (
        f"<ID>{number}</ID><UID>0</UID><GID>0</GID><UNAME>{OWNER}</UNAME><GNAME>{OWNER}</GNAME>"
        f"<NAME>{escape(name)}</NAME><PERMISSIONS>{rights}</PERMISSIONS>"
    )


def _ids(name: str, numbers: Sequence[int]) -> str:
    return f"<{name}>{''.join(f'<ID>{number}</ID>' for number in numbers)}</{name}>"


class Documents:
    """The documents of one version, for one installation."""

    def __init__(self, profile: Profile, place: Place) -> None:
        self._profile = profile
        self._place = place
        self._old = profile.version < (5, 0)

    def _text(self, name: str, value: str) -> str:
        return f"<{name}>{escape(value)}</{name}>" if self._old else cdata(name, value)

    def vm(self, vm: Vm, *, full: bool) -> str:
        """A VM; ``full`` with all of its history, else only the last record (as drivers see it)."""
        state, lcm = states.vm_state_numbers(vm.state)
        records = vm.histories if full else vm.histories[-1:]
        histories = "".join(self._history(vm, record) for record in records)
        head = _head(vm.id, vm.name, group=0)
        times = f"<STIME>{vm.started}</STIME><ETIME>{vm.ended}</ETIME>"
        shown = (
            f"<LAST_POLL>{vm.last_poll}</LAST_POLL><STATE>{state}</STATE>"
            f"<LCM_STATE>{lcm}</LCM_STATE>"
        )
        if not self._old:
            shown += f"<PREV_STATE>{state}</PREV_STATE><PREV_LCM_STATE>{lcm}</PREV_LCM_STATE>"
        body = (
            f"<VM>{head}{shown}<RESCHED>0</RESCHED>{times}"
            f"<DEPLOY_ID>{escape(vm.deploy_id)}</DEPLOY_ID>{self._monitoring(vm)}"
        )
        if self._old:
            body += to_xml(vm.template + vm.user_template)
        else:
            body += to_xml(vm.template) + to_xml(self._user_template(vm), "USER_TEMPLATE")
        empty = "<HISTORY_RECORDS/>"
        body += f"<HISTORY_RECORDS>{histories}</HISTORY_RECORDS>" if histories else empty
        if self._profile.version >= (6, 6):
            body += "<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS>"
        return f"{body}</VM>"

    def _user_template(self, vm: Vm) -> Template:
        """Since 6.6 a long error is cut; before, what a killed action leaves breaks the XML."""
        if self._profile.version < (6, 6):
            return vm.user_template
        stamp, colon, text = vm.error.partition(": ")
        if len(text) < _MAX_ERROR:
            return vm.user_template
        cut = f"{stamp}{colon}{text[:_MAX_ERROR]}... see more details in VM log"
        return [row if row[0] != "ERROR" else ("ERROR", cut) for row in vm.user_template]

    def _monitoring(self, vm: Vm) -> str:
        values = vm.monitoring
        if self._old:
            keys = {"MEMORY": "MEMORY", "CPU": "CPU", "NET_TX": "NETTX", "NET_RX": "NETRX"}
            return "".join(f"<{tag}>{values.get(key, 0)}</{tag}>" for tag, key in keys.items())
        shown = "".join(cdata(name, value) for name, value in sorted(values.items()))
        more = "<SCHED_ACTIONS></SCHED_ACTIONS>" if self._profile.version >= (6, 4) else ""
        return f"<MONITORING>{shown}</MONITORING>{more}"

    def _history(self, vm: Vm, record: History) -> str:
        host, system = record.host, record.system
        start = (
            f"<OID>{vm.id}</OID><SEQ>{record.sequence}</SEQ><HOSTNAME>{host.name}</HOSTNAME>"
            f"<HID>{host.id}</HID>"
        )
        times = f"<STIME>{record.started}</STIME><ETIME>{record.ended}</ETIME>"
        stages = "".join(
            f"<{name}>{record.started}</{name}>"
            for name in ("PSTIME", "PETIME", "RSTIME", "RETIME", "ESTIME", "EETIME")
        )
        if self._old:
            return (
                f"<HISTORY>{start}{times}<VMMMAD>{host.vm_mad}</VMMMAD><VNMMAD>{host.vn_mad}</VNMMAD>"
                f"<TMMAD>{system.tm_mad}</TMMAD>"
                f"<DS_LOCATION>{self._place.host_datastores()}</DS_LOCATION>"
                f"<DS_ID>{system.id}</DS_ID>{stages}<REASON>0</REASON></HISTORY>"
            )
        modern = self._profile.version >= (7, 0)
        plan = "<PLAN_ID>-1</PLAN_ID><ACTION_ID>0</ACTION_ID>" if modern else ""
        return (
            f"<HISTORY>{start}<CID>0</CID>{times}{cdata('VM_MAD', host.vm_mad)}"
            f"{cdata('TM_MAD', system.tm_mad)}<DS_ID>{system.id}</DS_ID>{plan}{stages}"
            f"<ACTION>{_ACTIONS.get(record.action, 0)}</ACTION><UID>0</UID><GID>0</GID>"
            "<REQUEST_ID>0</REQUEST_ID></HISTORY>"
        )

    def image(self, image: Image, store: Datastore) -> str:
        """An image."""
        state = states.IMAGE_STATES[image.state]
        disk_type = 0 if self._old else 2
        start = (
            f"<IMAGE>{_head(image.id, image.name, group=0)}<TYPE>{image.type}</TYPE>"
            f"<DISK_TYPE>{disk_type}</DISK_TYPE><PERSISTENT>{int(image.persistent)}</PERSISTENT>"
            f"<REGTIME>{image.regtime}</REGTIME>"
        )
        if self._profile.version >= (7, 0):
            start += f"<MODTIME>{image.regtime}</MODTIME>"
        start += self._text("SOURCE", image.source) + self._text("PATH", image.path)
        if self._profile.image_format:
            start += cdata("FORMAT", image.format) + cdata("FS", image.fs)
        else:
            start += self._text("FSTYPE", image.fstype)
        start += f"<SIZE>{image.size_mib}</SIZE><STATE>{state}</STATE>"
        if self._profile.image_format:
            start += f"<PREV_STATE>{state}</PREV_STATE>"
        end = (
            f"<RUNNING_VMS>{len(image.vms)}</RUNNING_VMS><CLONING_OPS>0</CLONING_OPS>"
            f"<CLONING_ID>-1</CLONING_ID>"
        )
        if not self._old:
            end += "<TARGET_SNAPSHOT>-1</TARGET_SNAPSHOT>"
        end += (
            f"<DATASTORE_ID>{image.datastore}</DATASTORE_ID><DATASTORE>{store.name}</DATASTORE>"
            f"{_ids('VMS', sorted(image.vms))}"
        )
        if not self._old:
            end += "<CLONES></CLONES><APP_CLONES></APP_CLONES>"
        end += to_xml(image.template)
        return f"{start}{end}</IMAGE>"

    def datastore(self, store: Datastore, images: Sequence[int]) -> str:
        """A datastore."""
        base = f"{self._place.datastores(self._profile)}/{store.id}"
        start = (
            f"<DATASTORE>{_head(store.id, store.name, group=1)}{self._text('DS_MAD', store.ds_mad)}"
            f"{self._text('TM_MAD', store.tm_mad)}{self._text('BASE_PATH', base)}"
        )
        if self._old:
            middle = (
                f"<SYSTEM>{int(store.type == 1)}</SYSTEM><DISK_TYPE>0</DISK_TYPE>"
                "<CLUSTER_ID>-1</CLUSTER_ID><CLUSTER></CLUSTER>"
            )
        else:
            middle = (
                f"<TYPE>{store.type}</TYPE><DISK_TYPE>0</DISK_TYPE><STATE>0</STATE>"
                "<CLUSTERS><ID>0</ID></CLUSTERS>"
                f"<TOTAL_MB>{store.total_mib}</TOTAL_MB><FREE_MB>{store.free_mib}</FREE_MB>"
                f"<USED_MB>{store.used_mib}</USED_MB>"
            )
        return f"{start}{middle}{_ids('IMAGES', images)}{to_xml(store.template)}</DATASTORE>"

    def host(self, host: Host, vms: Sequence[int]) -> str:
        """A host."""
        state = states.HOST_STATES[host.state]
        stamp = int(host.last_seen)
        if self._old:
            drivers = (
                f"<IM_MAD>{host.im_mad}</IM_MAD><VM_MAD>{host.vm_mad}</VM_MAD>"
                f"<VN_MAD>{host.vn_mad}</VN_MAD><LAST_MON_TIME>{stamp}</LAST_MON_TIME>"
                "<CLUSTER_ID>-1</CLUSTER_ID><CLUSTER></CLUSTER>"
            )
        else:
            drivers = (
                f"{cdata('IM_MAD', host.im_mad)}{cdata('VM_MAD', host.vm_mad)}"
                "<CLUSTER_ID>0</CLUSTER_ID><CLUSTER>default</CLUSTER>"
            )
        memory, cpu = host.number("TOTALMEMORY"), host.number("TOTALCPU")
        share = (
            f"<HOST_SHARE><MEM_USAGE>0</MEM_USAGE><CPU_USAGE>0</CPU_USAGE>"
            f"<MAX_MEM>{memory}</MAX_MEM><MAX_CPU>{cpu}</MAX_CPU>"
            f"<RUNNING_VMS>{len(vms)}</RUNNING_VMS></HOST_SHARE>"
        )
        return (
            f"<HOST><ID>{host.id}</ID><NAME>{host.name}</NAME><STATE>{state}</STATE>{drivers}"
            f"{share}{_ids('VMS', vms)}{to_xml(host.facts)}</HOST>"
        )
