# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Unit tests: one module each, no other process, under five seconds in all."""
