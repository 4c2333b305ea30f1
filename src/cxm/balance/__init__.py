# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Which VM belongs on which node, and how to get there: pure, and for any cluster."""
