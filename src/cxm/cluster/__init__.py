# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The cluster of Xen nodes: what Pacemaker is told, and what its resource agent does (0010)."""
