# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``cxm-sync``: OpenNebula's record follows where VMs run (docs/design/0011)."""
