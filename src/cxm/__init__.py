# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Highly available OpenNebula clouds on Xen: drivers, node helper and cluster tool."""

from typing import Final

__version__: Final = "0.1.0"

# The frontend and the node's root helper say this number to each other. It changes whenever a verb,
# its arguments or the data stream change in a way the other side would misunderstand.
API_VERSION: Final = 1
