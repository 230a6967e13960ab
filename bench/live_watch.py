"""Watch a folder as `live` does, copy nothing; once the marker is found tell what that cost, as JSON.

python bench/live_watch.py FOLDER MARKER
"""

from __future__ import annotations

import json
import os
import sys
import time

from scopeferry.kernel import publish
from scopeferry.sources.growing import GrowingTree
from scopeferry.sources.tree import TreeSource


def main(folder: str, marker: str) -> None:
    """Take every item as settled."""
    began, items = time.monotonic(), 0
    with GrowingTree(TreeSource(folder, publish.disk(folder))) as tree:
        for item in tree.items():
            if item is None:
                time.sleep(0.01)
                continue
            items += 1
            tree.settled(item.path)
            if item.path == marker:
                break
    used, took = sum(os.times()[:2]), time.monotonic() - began
    print(json.dumps({"items": items, "cpu_s": used, "cores": used / took}))


if __name__ == "__main__":
    main(*sys.argv[1:])
