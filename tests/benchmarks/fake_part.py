"""A part of a device's measurement without a device: `python -m fake_part HOW SPECIFICATION`."""

import json
import sys
import time

if __name__ == "__main__":
    how, specification = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(specification), flush=True)
    if how == "full":
        raise SystemExit("jaxlib: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    if how == "fails":
        raise RuntimeError("no such kernel")
    if how == "hangs":
        print('{"cut', end="", flush=True)
        time.sleep(60)
    if how == "done":
        print(json.dumps({"second": 2}))
