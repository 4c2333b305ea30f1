# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns OpenNebula's state numbers: how the API writes the states of VMs, images and hosts."""

from typing import Final

ACTIVE: Final = 3

# STATE of a VM.
VM_STATES: Final = {
    "INIT": 0,
    "PENDING": 1,
    "HOLD": 2,
    "ACTIVE": ACTIVE,
    "STOPPED": 4,
    "SUSPENDED": 5,
    "DONE": 6,
    "FAILED": 7,
    "POWEROFF": 8,
    "UNDEPLOYED": 9,
    "CLONING": 10,
    "CLONING_FAILURE": 11,
}

# LCM_STATE of a VM whose STATE is ACTIVE.
LCM_STATES: Final = {
    "LCM_INIT": 0,
    "PROLOG": 1,
    "BOOT": 2,
    "RUNNING": 3,
    "MIGRATE": 4,
    "SAVE_STOP": 5,
    "SAVE_SUSPEND": 6,
    "SAVE_MIGRATE": 7,
    "PROLOG_MIGRATE": 8,
    "PROLOG_RESUME": 9,
    "EPILOG_STOP": 10,
    "EPILOG": 11,
    "SHUTDOWN": 12,
    "CANCEL": 13,  # up to 4.2
    "FAILURE": 14,  # up to 4.12
    "CLEANUP": 15,
    "UNKNOWN": 16,
    "HOTPLUG": 17,
    "SHUTDOWN_POWEROFF": 18,
    "BOOT_UNKNOWN": 19,
    "BOOT_POWEROFF": 20,
    "BOOT_SUSPENDED": 21,
    "BOOT_STOPPED": 22,
    "CLEANUP_DELETE": 23,
    "SHUTDOWN_UNDEPLOY": 29,
    "EPILOG_UNDEPLOY": 30,
    "PROLOG_UNDEPLOY": 31,
    "BOOT_UNDEPLOY": 32,
    "BOOT_MIGRATE": 35,
    "BOOT_FAILURE": 36,
    "BOOT_MIGRATE_FAILURE": 37,
    "PROLOG_MIGRATE_FAILURE": 38,
    "PROLOG_FAILURE": 39,
    "EPILOG_FAILURE": 40,
    "EPILOG_STOP_FAILURE": 41,
    "EPILOG_UNDEPLOY_FAILURE": 42,
    "PROLOG_MIGRATE_POWEROFF": 43,
    "PROLOG_MIGRATE_POWEROFF_FAILURE": 44,
    "PROLOG_MIGRATE_SUSPEND": 45,
    "PROLOG_MIGRATE_SUSPEND_FAILURE": 46,
    "BOOT_UNDEPLOY_FAILURE": 47,
    "BOOT_STOPPED_FAILURE": 48,
    "PROLOG_RESUME_FAILURE": 49,
    "PROLOG_UNDEPLOY_FAILURE": 50,
    "PROLOG_MIGRATE_UNKNOWN": 60,
    "PROLOG_MIGRATE_UNKNOWN_FAILURE": 61,
}
_VM_NAMES: Final = {number: name for name, number in VM_STATES.items()}
_LCM_NAMES: Final = {number: name for name, number in LCM_STATES.items()}

IMAGE_STATES: Final = {
    "INIT": 0,
    "READY": 1,
    "USED": 2,
    "DISABLED": 3,
    "LOCKED": 4,
    "ERROR": 5,
    "CLONE": 6,
    "DELETE": 7,
    "USED_PERS": 8,
}
IMAGE_NAMES: Final = {number: name for name, number in IMAGE_STATES.items()}

HOST_STATES: Final = {
    "INIT": 0,
    "MONITORING_MONITORED": 1,
    "MONITORED": 2,
    "ERROR": 3,
    "DISABLED": 4,
    "MONITORING_ERROR": 5,
    "MONITORING_INIT": 6,
    "MONITORING_DISABLED": 7,
    "OFFLINE": 8,
}
HOST_NAMES: Final = {number: name for name, number in HOST_STATES.items()}


def vm_state_name(state: int, lcm_state: int) -> str:
    """The one name that a user sees: the life-cycle state of an active VM, else its state."""
    if state == ACTIVE:
        return _LCM_NAMES.get(lcm_state, f"LCM_{lcm_state}")
    return _VM_NAMES.get(state, f"STATE_{state}")


def vm_state_numbers(name: str) -> tuple[int, int]:
    """STATE and LCM_STATE of the state that a user sees as ``name``."""
    if name in VM_STATES:
        return VM_STATES[name], LCM_STATES["LCM_INIT"]
    return ACTIVE, LCM_STATES[name]
