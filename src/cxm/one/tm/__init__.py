# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Transfer Manager actions; they run on the frontend, one module an action or theme."""
