# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Tests that need the lab: real Xen nodes in QEMU."""
