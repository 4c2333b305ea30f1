# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The command ``cxm`` on a node of a cluster: what it shows, and the orders that it passes on."""
