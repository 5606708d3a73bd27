"""A front before an S3 server, in a process that can be killed: ``python -m tests.chaos.front PORT HOST UPSTREAM``."""

import sys

from tests.pipeline.fault_proxy import FaultProxy

if __name__ == "__main__":
    FaultProxy(int(sys.argv[1]), (sys.argv[2], int(sys.argv[3])))
    sys.stdin.read()  # until the test is through, or gone
