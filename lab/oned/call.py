# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""One XML-RPC call as a program of its own, so that it can be made inside the frontend's place.

``python call.py URL`` reads ``{"method": ..., "params": [...]}`` and prints the answer, as JSON.
"""

import json
import sys
from xmlrpc.client import ServerProxy


def main() -> int:
    """Make the call."""
    asked = json.load(sys.stdin)
    server = ServerProxy(sys.argv[1], allow_none=True)
    answer = getattr(server, asked["method"])(*asked["params"])
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
