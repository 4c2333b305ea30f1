# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Tests; see docs/testing.md for what each directory proves."""
