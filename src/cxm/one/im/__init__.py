# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Information Manager probes; they run on the node as oneadmin."""
