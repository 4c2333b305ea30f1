# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Virtual Machine Manager actions; they run on the node as oneadmin."""
