# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The node's side: the root helper, its typed verbs, and how others call them."""
