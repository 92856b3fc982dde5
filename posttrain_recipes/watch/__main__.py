"""The page beside a run: `ptl run --watch` starts it, and it ends when that process does.

    python -m posttrain_recipes.watch HOME RUN FD

FD is a socket that listens already. The token is the first line of standard input, where nobody
else sees it; the end of standard input is the end of the run's process, however that came.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

from posttrain_recipes.watch.server import server


def main(home: str, run: str, descriptor: str) -> None:
    """Serve until standard input ends."""
    # Ctrl-C is the run's: it saves what it has first, which the page shows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    token = sys.stdin.readline().strip()
    sock = socket.socket(fileno=int(descriptor))
    made = server(Path(home), run, token, sock)
    made.install_signal_handlers = lambda: None

    def until_the_end() -> None:
        sys.stdin.read()
        made.should_exit = True

    threading.Thread(target=until_the_end, daemon=True).start()
    made.run(sockets=[sock])


if __name__ == "__main__":
    main(*sys.argv[1:])
