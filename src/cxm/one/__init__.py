# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""OpenNebula's side: the driver actions and the protocol that oned speaks with them."""
