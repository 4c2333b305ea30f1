# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What oned sees of us: real processes, arguments, output and exit codes."""
