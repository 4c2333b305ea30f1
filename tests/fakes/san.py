# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a volume group that the nodes of a cluster share, with lvmlockd's rules.

As lvmlockd was seen to: a lock is converted in place while the volume is open; where another node
stands against it, the command fails at once.
"""

import os
from dataclasses import dataclass, field, replace

from tests.fakes.machine import FakeNode, Lv, Outcome

ALONE = "ex"
SHARED = "sh"
# As lvmlockctl of 2.03.16 prints them; of the lockspace of all groups it knows no group.
GLOBAL = "VG vg_uuid= lock_type= \nLS  lvm_global\nLK VG un ver 0\nLK GL un ver 1\n"
GROUP = "VG LVM_XEN lock_type=dlm 6blhFh-kisV-XnXF\nLS dlm lvm_LVM_XEN\nLK VG un ver 0\n"
USABLE = f"{GLOBAL}\n{GROUP}"


@dataclass(slots=True)
class San:
    """The storage of a cluster, and who holds which volume's lock."""

    root: str
    nodes: dict[str, "SanNode"] = field(default_factory=dict)
    locks: dict[str, dict[str, str]] = field(default_factory=dict)  # volume -> node -> ex or sh

    def check(self) -> None:
        """A volume is active where its lock is held, and nowhere besides where it is held alone."""
        for name in {lv for node in self.nodes.values() for lv in node.state.lvs}:
            held = self.locks.get(name, {})
            where = {key for key, node in self.nodes.items() if node.state.lvs[name].active}
            assert where == set(held), f"{name} is active on {where}, locked on {held}"
            assert ALONE not in held.values() or len(held) == 1, f"{name}: {held}"


class SanNode(FakeNode):
    """A node that shares its volume group."""

    def __init__(self, root: str, name: str, san: San) -> None:
        self.name, self.san = name, san
        san.nodes[name] = self
        super().__init__(root)
        self.shared = True
        self.lvmlockd: str | None = USABLE  # what it says; None: it does not run
        self.model("lvmlockctl", self._lvmlockctl)

    def path(self, *names: str) -> str:
        if names and names[0] in ("backing", "trees"):
            return os.path.join(self.san.root, *names)
        return super().path(*names)

    def lose(self) -> None:
        """The node's locks end with it: it was fenced."""
        for name, lv in list(self.state.lvs.items()):
            self.san.locks.get(name, {}).pop(self.name, None)
            self._put(replace(lv, active=False))
        self.state.opened = set()

    def _put(self, lv: Lv) -> None:
        self.state.lvs[lv.name] = lv
        if lv.active:
            self.san.locks.setdefault(lv.name, {}).setdefault(self.name, ALONE)
        link = self.path("dev", self.vg, lv.name)
        if lv.active and not os.path.lexists(link):
            os.symlink(self.path("backing", lv.name), link)
        if not lv.active and os.path.lexists(link):
            os.unlink(link)
        for node in self.san.nodes.values():
            if node is not self:
                there = node.state.lvs.get(lv.name)
                node.state.lvs[lv.name] = replace(lv, active=there is not None and there.active)

    def _lvmlockctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:] == ("-i",)
        if self.lvmlockd is None:
            return Outcome(stderr="Cannot connect to lvmlockd.\n", code=1)
        return Outcome(self.lvmlockd)

    def _others(self, name: str) -> dict[str, str]:
        held = self.san.locks.get(name, {})
        return {node: how for node, how in held.items() if node != self.name}

    def _locked(self, word: str) -> Outcome:
        return Outcome(stderr=f"  LV locked by other host: {word}\n", code=5)

    def _lvremove(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        for word in argv[3:]:
            if self._others(word.partition("/")[2]):
                return self._locked(word)
        done = super()._lvremove(argv, data)
        for word in argv[3:]:
            name = word.partition("/")[2]
            if name not in self.state.lvs:
                self.san.locks.pop(name, None)
                for node in self.san.nodes.values():
                    node.state.lvs.pop(name, None)
        return done

    def _lvchange(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        options, words = [argv[0]], list(argv[1:])
        while words and words[0].startswith("-"):
            options += [words.pop(0), words.pop(0)]
        if not words:
            return Outcome(stderr="  No command with matching syntax recognised.\n", code=3)
        done = [self._change(options, word, data) for word in words]
        return next((each for each in done if each.code), Outcome())

    def _change(self, options: list[str], word: str, data: bytes) -> Outcome:
        name = word.partition("/")[2]
        how = options[2] if options[1] == "-a" else ""
        others = self._others(name)
        if (how in ("y", "ey") and others) or (how == "sy" and ALONE in others.values()):
            return self._locked(word)
        plain = [*options[:2], "ey"] if how == "sy" else options
        done = super()._lvchange((*plain, word), data)
        if how and not done.code:
            held = self.san.locks.setdefault(name, {})
            if how == "n":
                held.pop(self.name, None)
            else:
                held[self.name] = SHARED if how == "sy" else ALONE
        return done
