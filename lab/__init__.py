# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The lab: real Xen nodes in QEMU on one machine, as a library and as the command cxm-lab."""
