# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the VMM driver: which steps each action has, their arguments, inputs and roll-backs."""

import base64
import os
from collections.abc import Sequence
from dataclasses import replace
from xml.sax.saxutils import escape

from cxm.errors import CxmError
from lab.oned import deployment
from lab.oned.documents import Documents
from lab.oned.drivers import MISSING, Answer, Log, Scripts
from lab.oned.model import History, Host, Vm
from lab.oned.steps import Run, Step, Steps
from lab.oned.templates import Template
from lab.oned.transfer import Transfers


class Hypervisor:
    """Runs VMM actions as oned's VMM driver of one version does."""

    def __init__(
        self,
        scripts: Scripts,
        documents: Documents,
        transfers: Transfers,
        defaults: Template,
        local: Sequence[str] = (),
    ) -> None:
        self._scripts = scripts
        self._steps = Steps(scripts, documents, transfers, local)
        self._defaults = defaults
        self._documents = documents
        self._transfers = transfers
        self._profile = scripts.profile

    # Actions. Each returns what the driver answers to oned.

    def deploy(self, vm: Vm, log: Log) -> Answer:
        """Start the domain; the answer is the deploy id."""
        name = f"deployment.{vm.history.sequence}"
        local = os.path.join(self._scripts.place.vm_dir(vm.id), name)
        remote = f"{self._transfers.host_dir(vm)}/{name}"
        vm.say(f"Generating deployment file: {local}")
        try:
            text = self._deployment(vm)
        except CxmError as error:
            return Answer(ok=False, info=error.message)
        with open(self._scripts.place.here(local), "w", encoding="utf-8") as file:
            file.write(text)
        context = self._context(vm)
        xml = self._documents.vm(vm, full=False)
        message = self._message(vm, xml, files=(local, remote), command=context)
        after = (*self._cancel("{deploy}"), *self._clean(after_failure=True))
        steps = [
            *self._context_step(context),
            Step("vnm", "pre"),
            *self._vm_files(vm, xml),
            Step("vmm", "deploy", (remote, vm.history.host.name), text,
                 undo=self._clean(after_failure=True)),
            Step("vnm", "post", self._post("{deploy}"), undo=after),
        ]  # fmt: skip
        return self._run(vm, "deploy", steps, message, log)

    def restore(self, vm: Vm, log: Log) -> Answer:
        """Start the domain from its checkpoint."""
        checkpoint = f"{self._transfers.host_dir(vm)}/checkpoint"
        context = self._context(vm)
        xml = self._documents.vm(vm, full=False)
        disk = context.split()[-3].partition(":")[2] if context else ""
        message = self._message(vm, xml, checkpoint=checkpoint, command=context, target_path=disk)
        words: tuple[str, ...] = (checkpoint, vm.history.host.name)
        if self._profile.restores_with_deploy_id:
            words += (vm.deploy_id,)
        steps = [
            *self._context_step(context),
            Step("vnm", "pre"),
            Step("vmm", "restore", words),
            Step("vnm", "post", self._post(vm.deploy_id), undo=self._cancel(vm.deploy_id)),
        ]
        return self._run(vm, "restore", steps, message, log)

    def save(self, vm: Vm, log: Log, record: History | None = None) -> Answer:
        """Write the domain's memory to its checkpoint and end it; where ``record`` says it is."""
        source = record or vm.history
        checkpoint = f"{self._transfers.host_dir(vm, source)}/checkpoint"
        xml = self._documents.vm(vm, full=False)
        message = self._message(vm, xml, record=source, checkpoint=checkpoint)
        words = (vm.deploy_id, checkpoint, source.host.name)
        steps = [Step("vmm", "save", words), *self._clean()]
        return self._steps.run(Run(vm, source.host, message, log), "save", steps)

    def migrate(self, vm: Vm, log: Log) -> Answer:
        """Let the running domain move from the host before the last to the last."""
        source, target = vm.histories[-2].host, vm.history.host
        line = self._transfers.migration(vm)
        xml = self._documents.vm(vm, full=False)
        message = self._message(
            vm, xml, record=vm.histories[-2], target=target, command=f"{line}\n",
            target_path=self._transfers.host_dir(vm) if self._profile.names_migration_dir else "",
        )  # fmt: skip
        failed = (self._around("FAIL", line, xml),) if self._profile.has_failmigrate else ()
        undone = failed if self._profile.undoes_premigrate else ()
        words = (vm.deploy_id, target.name, source.name)
        # From here on the VM is on the target, whatever else fails; 3.x does not see that.
        lax = self._profile.forgives_after_migration
        after = [
            *self._clean(),
            Step("vnm", "post", self._post(vm.deploy_id), on_target=True),
            self._around("POST", line, xml),
        ]
        steps = [
            replace(self._around("PRE", line, xml), undo=undone),
            Step("vnm", "pre", on_target=True),
            Step("vmm", "migrate", words, undo=failed),
            *[replace(step, may_fail=lax) for step in after],
        ]
        return self._steps.run(Run(vm, source, message, log, target), "migrate", steps)

    def end(self, vm: Vm, action: str, log: Log) -> Answer:
        """Shut down, or cancel."""
        message = self._message(vm, self._documents.vm(vm, full=False))
        words = (vm.deploy_id, vm.history.host.name)
        return self._run(vm, action, [Step("vmm", action, words), *self._clean()], message, log)

    def restart(self, vm: Vm, action: str, log: Log) -> Answer:
        """Reboot, or reset."""
        words = (vm.deploy_id, vm.history.host.name)
        if self._profile.stream_reboot:
            message = self._message(vm, self._documents.vm(vm, full=False))
            return self._run(vm, action, [Step("vmm", action, words)], message, log)
        return self.direct(vm, action, log)

    def direct(self, vm: Vm, action: str, log: Log) -> Answer:
        """Run an action by itself, as poll and the oldest reboot do."""
        host = vm.history.host.name
        return self._steps.direct(action, f"{vm.deploy_id} {host} {vm.id} {host}", host, log)

    def cleanup(self, vm: Vm, log: Log) -> Answer:
        """Remove a VM from its host, whatever is left of it; never fails."""
        lines = self._transfers.delete(vm)
        xml = self._documents.vm(vm, full=False)
        message = self._message(vm, xml, command="\n".join(lines) + "\n")
        steps = [*self._cancel(vm.deploy_id)] if vm.deploy_id else []
        steps += self._clean()
        steps += [Step("tm", "tm_delete", tuple(line.split())) for line in lines]
        loose = [Step(step.driver, step.action, step.parameters, may_fail=True) for step in steps]
        return self._run(vm, "cleanup", loose, message, log)

    # Parts.

    def _run(self, vm: Vm, action: str, steps: Sequence[Step], message: str, log: Log) -> Answer:
        return self._steps.run(Run(vm, vm.history.host, message, log), action, steps)

    def _deployment(self, vm: Vm) -> str:
        if self._profile.deployment_type == "xml":
            return self._documents.vm(vm, full=False)
        directory = self._transfers.host_dir(vm)
        return deployment.xen(vm, self._profile, directory, self._defaults)

    def _context(self, vm: Vm) -> str:
        line = self._transfers.context(vm) if self._profile.context_at_boot else None
        return f"{line}\n" if line else ""

    def _context_step(self, context: str) -> list[Step]:
        return [Step("tm", "tm_context", tuple(context.split()))] if context else []

    def _vm_files(self, vm: Vm, xml: str) -> list[Step]:
        if not self._profile.writes_vm_files:
            return []
        directory = self._transfers.host_dir(vm)
        system = vm.history.system
        return [
            Step("shell", "/bin/mkdir -p", (directory,), ""),
            Step("shell", f"/bin/cat - >{directory}/vm.xml", (), xml),
            Step("shell", f"/bin/cat - >{directory}/ds.xml", (),
                 self._documents.datastore(system, ())),
        ]  # fmt: skip

    def _around(self, kind: str, line: str, xml: str) -> Step:
        """What the TM driver does before or after a live migration, or after one that failed."""
        words = f"{kind}{line}".split()
        data = base64.b64encode(xml.encode()).decode()
        action = f"tm_{kind.lower()}migrate"
        if self._profile.migration_data_in_argv:
            return Step("tm", action, (*words, data))
        return Step("tm", action, tuple(words), data, may_fail=kind == "FAIL")

    def _post(self, deploy_id: str) -> tuple[str, ...]:
        return (deploy_id, "{host}") if self._profile.network_names_host else (deploy_id,)

    def _cancel(self, deploy_id: str) -> tuple[Step, ...]:
        return (Step("vmm", "cancel", (deploy_id, "{host}")),)

    def _clean(self, *, after_failure: bool = False) -> tuple[Step, ...]:
        if after_failure and not self._profile.cleans_network_after_failure:
            return ()
        words = ("{host}",) if self._profile.network_names_host else ()
        return (Step("vnm", "clean", words),)

    def _message(
        self,
        vm: Vm,
        xml: str,
        *,
        record: History | None = None,
        target: Host | None = None,
        files: tuple[str, str] = ("", ""),
        checkpoint: str = "",
        command: str = "",
        target_path: str = "",
    ) -> str:
        record = record or vm.history
        old = self._profile.network_driver_of_host

        def element(name: str, value: str) -> str:
            return f"<{name}>{escape(value)}</{name}>" if value else f"<{name}/>"

        rows = [element("HOST", record.host.name)]
        if old:
            rows.append(element("NET_DRV", record.host.vn_mad))
        rows.append(element("MIGR_HOST", target.name if target else ""))
        if old:
            rows.append(element("MIGR_NET_DRV", target.vn_mad if target else ""))
        rows += [
            element("DEPLOY_ID", vm.deploy_id),
            element("LOCAL_DEPLOYMENT_FILE", files[0]),
            element("REMOTE_DEPLOYMENT_FILE", files[1]),
            element("CHECKPOINT_FILE", checkpoint),
            element("TM_COMMAND", command),
        ]
        if not old:
            rows.append("<TM_COMMAND_ROLLBACK/>")
        rows += [element("DISK_TARGET_PATH", target_path), xml]
        if not old:
            rows.append(self._documents.datastore(record.system, ()))
        return f"<VMM_DRIVER_ACTION_DATA>{''.join(rows)}</VMM_DRIVER_ACTION_DATA>"


__all__ = ["MISSING", "Hypervisor", "Step"]
