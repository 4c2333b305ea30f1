# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What the VMs of a cluster are to Pacemaker, and how it is asked and told."""
