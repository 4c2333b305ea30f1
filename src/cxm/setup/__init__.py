# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup: puts the drivers onto a frontend and prepares a node."""
