# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""An OpenNebula for the lab: a stand-in that drives the drivers as oned does, or a real oned.

Both are a :class:`lab.oned.cloud.Cloud`; scenarios, demo and benchmarks know no more than that.
"""
