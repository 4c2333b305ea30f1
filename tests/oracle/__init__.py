# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What others find, to measure ours with: needs packages of requirements-oracle.txt."""
