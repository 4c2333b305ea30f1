# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Benchmarks, run by ``make bench``: ratios of two ways measured side by side in one run."""
