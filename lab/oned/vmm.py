# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the VMM driver: the steps of each action, their arguments, inputs and roll-backs."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from cxm.errors import CxmError
from lab.oned import deployment
from lab.oned.documents import Documents
from lab.oned.drivers import MISSING, Answer, Log, Scripts, Stream, answer
from lab.oned.model import Vm
from lab.oned.templates import Template
from lab.oned.transfer import Transfers

_DRIVER: Final = "cxm"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: of the VMM driver, a network driver, or the TM driver."""

    driver: str  # vmm, vnm, tm or shell
    action: str
    parameters: tuple[str, ...] = ()
    stdin: str | None = None  # None: what this version gives by default
    undo: tuple["Step", ...] = ()
    may_fail: bool = False


@dataclass(slots=True)
class _Run:
    """An action under way."""

    vm: Vm
    stream: Stream
    message: str
    log: Log
    answers: dict[str, str] = field(default_factory=dict)
    reason: str = "-"


class Hypervisor:
    """Runs VMM actions as oned's VMM driver of one version does."""

    def __init__(
        self, scripts: Scripts, documents: Documents, transfers: Transfers, defaults: Template
    ) -> None:
        self._scripts = scripts
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
            Step("vnm", "post", self._post("{deploy}", vm), undo=after),
        ]  # fmt: skip
        return self._run(vm, "deploy", steps, message, log)

    def restore(self, vm: Vm, log: Log) -> Answer:
        """Start the domain from its checkpoint."""
        checkpoint = f"{self._transfers.host_dir(vm)}/checkpoint"
        context = self._context(vm)
        xml = self._documents.vm(vm, full=False)
        message = self._message(vm, xml, checkpoint=checkpoint, command=context)
        words: tuple[str, ...] = (checkpoint, vm.history.host.name)
        if self._profile.restores_with_deploy_id:
            words += (vm.deploy_id,)
        steps = [
            *self._context_step(context),
            Step("vnm", "pre"),
            Step("vmm", "restore", words),
            Step("vnm", "post", self._post(vm.deploy_id, vm), undo=self._cancel(vm.deploy_id)),
        ]
        return self._run(vm, "restore", steps, message, log)

    def save(self, vm: Vm, log: Log) -> Answer:
        """Write the domain's memory to its checkpoint and end it."""
        checkpoint = f"{self._transfers.host_dir(vm)}/checkpoint"
        xml = self._documents.vm(vm, full=False)
        message = self._message(vm, xml, checkpoint=checkpoint)
        words = (vm.deploy_id, checkpoint, vm.history.host.name)
        return self._run(vm, "save", [Step("vmm", "save", words), *self._clean()], message, log)

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
        """Run an action by an ssh of its own, as poll and the oldest reboot do."""
        host = vm.history.host.name
        command = f"{self._script(action)} {vm.deploy_id} {host} {vm.id} {host}"
        return answer(self._scripts.remote(host, command), self._profile, log)

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

    def _post(self, deploy_id: str, vm: Vm) -> tuple[str, ...]:
        return (
            (deploy_id, vm.history.host.name) if self._profile.network_names_host else (deploy_id,)
        )

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
        files: tuple[str, str] = ("", ""),
        checkpoint: str = "",
        command: str = "",
    ) -> str:
        old = self._profile.network_driver_of_host

        def element(name: str, value: str) -> str:
            return f"<{name}>{escape(value)}</{name}>" if value else f"<{name}/>"

        rows = [element("HOST", vm.history.host.name)]
        if old:
            rows += [element("NET_DRV", vm.history.host.vn_mad), "<MIGR_HOST/><MIGR_NET_DRV/>"]
        else:
            rows.append("<MIGR_HOST/>")
        rows += [
            element("DEPLOY_ID", vm.deploy_id),
            element("LOCAL_DEPLOYMENT_FILE", files[0]),
            element("REMOTE_DEPLOYMENT_FILE", files[1]),
            element("CHECKPOINT_FILE", checkpoint),
            element("TM_COMMAND", command),
        ]
        if not old:
            rows.append("<TM_COMMAND_ROLLBACK/>")
        rows += ["<DISK_TARGET_PATH/>", xml]
        if not old:
            rows.append(self._documents.datastore(vm.history.system, ()))
        return f"<VMM_DRIVER_ACTION_DATA>{''.join(rows)}</VMM_DRIVER_ACTION_DATA>"

    def _script(self, action: str) -> str:
        return f"{self._scripts.place.remote_dir}/vmm/{_DRIVER}/{action}"

    # Running.

    def _run(self, vm: Vm, action: str, steps: Sequence[Step], message: str, log: Log) -> Answer:
        stream = self._scripts.stream(vm.history.host.name)
        run = _Run(vm, stream, message, log)
        try:
            ok = self._steps(run, steps)
        finally:
            stream.close()
        return Answer(ok, run.answers.get(action, "-") if ok else run.reason)

    def _steps(self, run: _Run, steps: Sequence[Step]) -> bool:
        for step in steps:
            done = self._step(run, step)
            run.answers[step.action] = done.info
            if done.ok:
                run.log(f"Successfully execute {step.driver} operation: {step.action}.", "I")
                continue
            self._steps(run, step.undo)
            run.reason = done.info
            run.log(f"Failed to execute {step.driver} operation: {step.action}.", "I")
            if not step.may_fail:
                return False
        return True

    def _step(self, run: _Run, step: Step) -> Answer:
        if step.driver == "tm":
            return self._transfers.run_line(step.parameters, run.log)
        host = run.vm.history.host.name
        known = {"{deploy}": run.answers.get("deploy", ""), "{host}": host}
        words = [known.get(word, word) for word in step.parameters]
        if self._profile.quotes_parameters:
            words = [f"'{word}'" for word in words]
        if step.driver == "vnm":
            return self._network(run, step.action, words)
        if step.driver == "shell":
            command = f"{step.action} {' '.join(words)}"
        else:
            command = f"{self._script(step.action)} {' '.join(words)} {run.vm.id} {host}"
        stdin = step.stdin
        if stdin is None and self._profile.gives_stdin:
            stdin = run.message
        return answer(run.stream.run(command, stdin), self._profile, run.log)

    def _network(self, run: _Run, action: str, words: Sequence[str]) -> Answer:
        """Run the step of each network driver; of the host's one up to 4.14."""
        data = base64.b64encode(self._documents.vm(run.vm, full=False).encode()).decode()
        if self._profile.network_driver_of_host:
            names = [run.vm.history.host.vn_mad]
        else:
            names = list(dict.fromkeys(nic["VN_MAD"] for nic in run.vm.nics if nic.get("VN_MAD")))
        for name in names:
            script = f"{self._scripts.place.remote_dir}/vnm/{name}/{action}"
            if self._profile.network_data_in_argv:
                command, stdin = f"{script} {data} {' '.join(words)}", None
            else:
                command, stdin = f"{script}  {' '.join(words)}", data
            done = answer(run.stream.run(command, stdin), self._profile, run.log)
            if not done.ok:
                return done
        return Answer(ok=True, info="-")


__all__ = ["MISSING", "Hypervisor", "Step"]
