# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how the VMM driver runs the steps of an action: where, with which input, and roll-backs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lab.oned.documents import Documents
from lab.oned.drivers import Answer, Log, Scripts, Stream, answer
from lab.oned.model import Host, Vm
from lab.oned.transfer import Transfers

_DRIVER: Final = "cxm"


class DriverDiedError(Exception):
    """The driver's thread has ended in the middle of an action, and oned is never answered.

    It writes the network step's input to an ssh that has ended since its host cannot be reached
    (``ssh_stream.rb``, since 5.10). A real one loses that race mostly; this one always.
    """


@dataclass(frozen=True, slots=True)
class Step:
    """One step: of the VMM driver, a network driver, or the TM driver."""

    driver: str  # vmm, vnm, tm or shell
    action: str
    parameters: tuple[str, ...] = ()
    stdin: str | None = None  # None: what this version gives by default
    undo: tuple["Step", ...] = ()
    may_fail: bool = False
    on_target: bool = False  # of a live migration


@dataclass(slots=True)
class Run:
    """An action under way."""

    vm: Vm
    host: Host
    message: str
    log: Log
    target: Host | None = None  # of a live migration
    streams: dict[int, Stream] = field(default_factory=dict)  # by the host's id
    answers: dict[str, str] = field(default_factory=dict)
    reason: str = "-"

    def place(self, step: Step) -> Host:
        """The host that a step works on."""
        return self.target if step.on_target and self.target else self.host

    def leaves(self, host: Host) -> bool:
        """Whether the VM moves away from this host while it runs."""
        return self.target is not None and host is not self.target


class Steps:
    """Runs steps as oned's VMM driver of one version does."""

    def __init__(
        self,
        scripts: Scripts,
        documents: Documents,
        transfers: Transfers,
        local: Sequence[str] = (),
    ) -> None:
        self._local = local  # the actions of the list -l, which run on the frontend
        self._scripts = scripts
        self._documents = documents
        self._transfers = transfers
        self._profile = scripts.profile

    def run(self, run: Run, action: str, steps: Sequence[Step]) -> Answer:
        """Run the steps of an action; the answer is what the driver tells oned."""
        for host in filter(None, (run.host, run.target)):
            run.streams[host.id] = self._scripts.stream(host.name)
        try:
            ok = self._all(run, steps)
        finally:
            for stream in run.streams.values():
                stream.close()
        return Answer(ok, run.answers.get(action, "-") if ok else run.reason)

    def direct(self, action: str, words: str, host: str, log: Log) -> Answer:
        """Run an action by an ssh of its own, or on the frontend, without any input."""
        if action in self._local:
            outcome = self._scripts.local(f"{self._here(action)} {words}")
        else:
            outcome = self._scripts.remote(host, f"{self._there(action)} {words}")
        return answer(outcome, self._profile, log)

    def _there(self, action: str) -> str:
        return f"{self._scripts.place.remote_dir}/vmm/{_DRIVER}/{action}"

    def _here(self, action: str) -> str:
        return f"{self._scripts.place.remotes}/vmm/{_DRIVER}/{action}"

    def _all(self, run: Run, steps: Sequence[Step]) -> bool:
        for step in steps:
            done = self._one(run, step)
            run.answers[step.action] = done.info
            if done.ok:
                run.log(f"Successfully execute {step.driver} operation: {step.action}.", "I")
                continue
            self._all(run, step.undo)
            run.reason = done.info
            run.log(f"Failed to execute {step.driver} operation: {step.action}.", "I")
            if not step.may_fail:
                return False
        return True

    def _one(self, run: Run, step: Step) -> Answer:
        if step.driver == "tm":
            return self._transfers.run_line(step.parameters, run.log, step.stdin or "")
        # oned means the source's name even where a step of a migration works on the target.
        known = {"{deploy}": run.answers.get("deploy", ""), "{host}": run.host.name}
        words = [known.get(word, word) for word in step.parameters]
        if self._profile.quotes_parameters:
            words = [f"'{word}'" for word in words]
        if step.driver == "vnm":
            return self._network(run, step, words)
        host = run.place(step)
        if step.driver == "vmm" and step.action in self._local:
            return self._on_frontend(run, step, words, host)
        if step.driver == "shell":
            command = f"{step.action} {' '.join(words)}"
        else:
            command = f"{self._there(step.action)} {' '.join(words)} {run.vm.id} {host.name}"
        stdin = step.stdin
        if stdin is None and self._profile.gives_stdin:
            stdin = run.message
        return answer(run.streams[host.id].run(command, stdin), self._profile, run.log)

    def _on_frontend(self, run: Run, step: Step, words: Sequence[str], host: Host) -> Answer:
        """Run the step's script on the frontend; up to 4.14 without any input."""
        command = f"{self._here(step.action)} {' '.join(words)} {run.vm.id} {host.name}"
        data = self._scripts.local_data(run.message if step.stdin is None else step.stdin)
        return answer(self._scripts.local(command, data), self._profile, run.log)

    def _network(self, run: Run, step: Step, words: Sequence[str]) -> Answer:
        """Run the step of each network driver; of the host's one up to 4.14."""
        host = run.place(step)
        data = base64.b64encode(self._documents.vm(run.vm, full=False).encode()).decode()
        if self._profile.network_driver_of_host:
            names = [host.vn_mad]
        else:
            names = list(dict.fromkeys(nic["VN_MAD"] for nic in run.vm.nics if nic.get("VN_MAD")))
        is_local = step.action in self._local
        place = self._scripts.place
        for name in names:
            root = place.remotes if is_local else place.remote_dir
            script = f"{root}/vnm/{name}/{step.action}"
            if self._profile.network_data_in_argv:
                command, stdin = f"{script} {data} {' '.join(words)}", None
            else:
                command, stdin = f"{script}  {' '.join(words)}", data
            if is_local:
                outcome = self._scripts.local(command, stdin or "")
            else:
                outcome = run.streams[host.id].run(command, stdin)
                if run.leaves(host) and stdin is not None and run.streams[host.id].is_dead:
                    raise DriverDiedError
            done = answer(outcome, self._profile, run.log)
            if not done.ok:
                named = "" if self._profile.network_driver_of_host else f" {name}: "
                return Answer(ok=False, info=f"{named}{done.info}")
        return Answer(ok=True, info="-")


__all__ = ["DriverDiedError", "Run", "Step", "Steps"]
