"""How much memory reading a data file takes, in a process of its own.

`tracemalloc` must not be switched on and off where other threads allocate: before CPython 3.12.9
that is a segmentation fault (gh-128679), and a test process has threads of the SDK and of MLflow.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_MEASURE = """
import sys, tracemalloc
from pathlib import Path
def peak(path, rows):
    tracemalloc.start()
    assert read(Path(path)) == rows
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found
pairs = [(path, int(rows)) for path, rows in (word.rsplit("=", 1) for word in sys.argv[1:])]
peak(*pairs[0])  # imports and caches
print(*(peak(*pair) for pair in pairs[1:]))
"""


def peaks(code: str, rows: Sequence[int], folder: Path) -> list[int]:
    """The peak, in bytes, of `read(path)`, which `code` defines and which returns its row count."""
    words = []
    for count in (10, *rows):
        path = folder / f"{count}.jsonl"
        with path.open("w") as stream:
            for number in range(count):
                stream.write(json.dumps({"prompt": f"q{number}", "completion": "a" * 200}) + "\n")
        words.append(f"{path}={count}")
    done = subprocess.run(
        [sys.executable, "-c", code + _MEASURE, *words], check=True, capture_output=True, text=True
    )
    return [int(word) for word in done.stdout.split()]
