# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Models of the outside world that understand the real argument lists and keep state."""
