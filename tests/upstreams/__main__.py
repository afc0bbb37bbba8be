"""A stand-in as a process of its own, which can be killed: python -m tests.upstreams small 8001"""

import sys
import threading

from tests.upstreams.server import Upstream

if __name__ == "__main__":
    upstream = Upstream(sys.argv[1], port=int(sys.argv[2]), pace=float(sys.argv[3]))
    upstream.start()
    print("ready", flush=True)  # noqa: T201
    threading.Event().wait()
