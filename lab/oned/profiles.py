# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what differs between versions of oned, as facts of the stand-in. Runs nothing."""

from dataclasses import dataclass
from typing import Final

from cxm.errors import UsageError
from cxm.one.version import OneVersion


@dataclass(frozen=True, slots=True)
class Profile:
    """How one version of oned behaves towards its drivers."""

    version: OneVersion

    @property
    def gives_stdin(self) -> bool:
        """VMM actions get the VM's XML on standard input; before, only deploy gets any."""
        return self.version >= (5, 0)

    @property
    def stream_reboot(self) -> bool:
        """Reboot and reset go through the stream; before, by an ssh of their own without input."""
        return self.version >= (5, 5)

    @property
    def quotes_here_document(self) -> bool:
        """The remote bash takes the input literally; before, it expands ``$`` and backticks."""
        return self.version >= (6, 4, 3)

    @property
    def quotes_parameters(self) -> bool:
        """Parameters of VMM actions stand in single quotes."""
        return self.version >= (4, 4)

    @property
    def restores_with_deploy_id(self) -> bool:
        return self.version >= (4, 4)

    @property
    def writes_vm_files(self) -> bool:
        """Deploy leaves vm.xml and ds.xml in the VM's directory on the host."""
        return self.version >= (6, 0)

    @property
    def context_at_boot(self) -> bool:
        """The context is made at each deploy and restore; before, once in the prolog."""
        return self.version >= (5, 0)

    @property
    def context_quote(self) -> str:
        """The quotes around values in context.sh."""
        return "'" if self.version >= (4, 4) else '"'

    @property
    def escapes_tm_arguments(self) -> bool:
        return self.version >= (5, 8)

    @property
    def finds_short_tm_name(self) -> bool:
        """``clone.ssh`` is served by ``clone`` when it is absent."""
        return self.version >= (5, 10)

    @property
    def network_driver_of_host(self) -> bool:
        """The host says the one network driver; since, each network interface does."""
        return self.version < (5, 0)

    @property
    def network_data_in_argv(self) -> bool:
        """Network drivers get the VM's XML as an argument; since, on standard input."""
        return self.version < (5, 10)

    @property
    def network_names_host(self) -> bool:
        """Network steps after the start and at the end get the host as an argument."""
        return self.version >= (6, 0)

    @property
    def cleans_network_after_failure(self) -> bool:
        return self.version >= (5, 12)

    @property
    def error_markers(self) -> bool:
        """A script's error is the text between two marker lines."""
        return self.version < (5, 13)

    @property
    def filters_errors(self) -> bool:
        """Lines with a severity are logged, the others joined without a separator."""
        return self.version >= (6, 99)

    @property
    def remotes_copy(self) -> str:
        """The command that copies the remotes when a script is missing on a host."""
        if self.version < (4, 4):
            return "scp -r {remotes}/. {host}:{target}"
        if self.version < (5, 10):
            return "scp -rp {remotes}/. {host}:{target}"
        return "scp -rp {remotes}/* {host}:{target}"

    @property
    def failure_states(self) -> bool:
        """What failed waits in a state of its own to be tried again; before, it is FAILED."""
        return self.version >= (5, 0)

    @property
    def migrates_at_rest(self) -> bool:
        """VMs that do not run are migrated too, by moving their files."""
        return self.version >= (5, 0)

    @property
    def recovers(self) -> bool:
        """A user may say how an operation has ended that nobody works on."""
        return self.version >= (4, 0)

    @property
    def takes_moves_back(self) -> bool:
        """A move of files that failed is taken back by a recover; before, that does nothing."""
        return self.version >= (5, 2)

    @property
    def has_raft(self) -> bool:
        """Several servers of one zone follow a leader."""
        return self.version >= (5, 4)

    @property
    def migrates_unknown(self) -> bool:
        """A VM that is not known any more is migrated, by deploying it on the new host."""
        return self.version >= (4, 10)

    @property
    def boots_after_migration(self) -> bool:
        """A saved VM is restored in a state of its own, not in BOOT."""
        return self.version >= (4, 14)

    @property
    def swaps_migration_hosts(self) -> bool:
        """A bug: the TM is given the target before the source."""
        return self.version < (4, 0)

    @property
    def migration_data_in_argv(self) -> bool:
        """The TM gets the VM's XML as an argument; since, on standard input."""
        return self.version < (5, 10)

    @property
    def has_failmigrate(self) -> bool:
        """The TM is told that a migration failed."""
        return self.version >= (4, 14)

    @property
    def undoes_premigrate(self) -> bool:
        """It is told that too when premigrate itself failed."""
        return self.version >= (7, 3)

    @property
    def forgives_after_migration(self) -> bool:
        """What fails when the VM has moved does not fail the migration."""
        return self.version >= (4, 0)

    @property
    def names_migration_dir(self) -> bool:
        """The message of a live migration says the VM's directory."""
        return self.version >= (5, 13)

    @property
    def can_undeploy(self) -> bool:
        return self.version >= (4, 4)

    @property
    def deletes_stopped_on_frontend(self) -> bool:
        """Deleting a stopped VM names the frontend; since, its last host (seen in 7.4)."""
        return self.version < (5, 0)

    @property
    def monitord(self) -> bool:
        """Hosts push messages to monitord; before, their probes are run and asked."""
        return self.version >= (5, 12)

    @property
    def polls_vms(self) -> bool:
        """Each VM is asked for by the VMM action poll; since, the probes report all VMs."""
        return self.version < (4, 4)

    @property
    def lost_is_poweroff(self) -> bool:
        """A VM that its host no longer reports is POWEROFF; before, UNKNOWN."""
        return self.version >= (4, 8)

    @property
    def done_when_reported(self) -> bool:
        """A VM is taken for deployed, or shut down, when it is reported so before its driver is."""
        return self.version >= (4, 14)

    @property
    def several_system_datastores(self) -> bool:
        """System datastores are created; before, there is the one with id 0."""
        return self.version >= (4, 4)

    @property
    def image_format(self) -> bool:
        """Images have a FORMAT, which becomes DRIVER of the disk."""
        return self.version >= (5, 12)

    @property
    def keeps_disk_size(self) -> bool:
        """A disk of a VM says its SIZE and ORIGINAL_SIZE."""
        return self.version >= (4, 14)

    @property
    def clones_cdrom(self) -> bool:
        """A CD-ROM image is cloned like others; since, it is linked."""
        return self.version < (4, 0)

    @property
    def splits_user_template(self) -> bool:
        """What oned does not know goes to USER_TEMPLATE."""
        return self.version >= (4, 0)

    @property
    def deployment_type(self) -> str:
        """TYPE of the VM_MAD that cxm's guide gives for this version."""
        return "xml" if self.version >= (5, 0) else "xen"


PROFILES: Final = {
    "3.8": Profile(OneVersion(3, 8, 5)),
    "5.4": Profile(OneVersion(5, 4, 15)),
    "5.10": Profile(OneVersion(5, 10, 5)),
    "6.10": Profile(OneVersion(6, 10, 5)),
    "7.4": Profile(OneVersion(7, 4, 0)),
}


def profile(name: str) -> Profile:
    """The profile called ``name``, for example "7.4"."""
    if name not in PROFILES:
        raise UsageError(f"no profile of OpenNebula {name}", hint=f"known: {' '.join(PROFILES)}")
    return PROFILES[name]
