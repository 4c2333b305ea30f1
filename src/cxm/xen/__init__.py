# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The hypervisor: the xl tool, domain configurations and kernels."""
