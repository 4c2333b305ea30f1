# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Verbs and actions in-process, on models of the world."""
