# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Tools of the repository."""
