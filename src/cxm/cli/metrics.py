# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what VMs use, asked of all nodes at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from xml.etree.ElementTree import Element

from cxm import names
from cxm.cli.world import World
from cxm.cluster.model import UP, Cluster
from cxm.errors import CxmError
from cxm.node import usage


def used(world: World, cluster: Cluster, cib: Element) -> dict[str, float]:
    """CPU in percent of one processor over the last hour at most, by resource.

    A node that does not answer is told of; of its VMs nothing is known then.
    """
    here = world.here()
    others = [each.name for each in cluster.nodes if each.state in UP and each.name != here]
    with ThreadPoolExecutor(1) as pool:
        machine = replace(world.bare(), monotonic=world.monotonic, sleep=world.sleep)
        own = pool.submit(usage.measure, machine)
        answers = world.ask(cib, others, lambda peer: peer.usage())
        found = dict(own.result())
    for name, answer in answers.items():
        if isinstance(answer, CxmError):
            world.say(f"what the VMs of {name} use is not known: {answer.sentence()}")
        else:
            found |= answer
    keys = {
        names.domain_uuid(vm.resource.cloud, vm.resource.vm): vm.resource.id for vm in cluster.vms
    }
    return {keys[uuid]: percent for uuid, percent in found.items() if uuid in keys}
