"""The engine's process: `python -m posttrain_recipes.engine --model NAME=PATH --data-dir DIR`.

The token is read from the environment (PTL_ENGINE_TOKEN), never from the command line, which every
user can read. `posttrain_recipes.engine.launch` starts it this way; `ptl serve` calls
`run_server` in its own process.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import uvicorn

from posttrain_recipes import content, pretrained, private
from posttrain_recipes.engine.app import build
from posttrain_recipes.engine.core.hosted import HostedDouble
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.shown import PlainFormatter, is_address, plain, redact

TOKEN_VARIABLE = "PTL_ENGINE_TOKEN"
PARENT_CHECK_S = 2.0
DRAIN_S = 15.0
WILDCARDS = {"0.0.0.0", "::", ""}

log = logging.getLogger("posttrain_recipes.engine")


class _Server(uvicorn.Server):
    """uvicorn that drains: asked to stop, it refuses new work, finishes what is accepted, has its
    clients fetch the answers, all of it within `DRAIN_S`, and ends. Asked again, it ends at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._deadline: float | None = None
        self._ready = 0  # ticks since there was nothing more to do

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own handler, which raises the signal again once the server has stopped.
        scheduler = self.service.state.scheduler
        if self._deadline is None:
            self._deadline = time.monotonic() + DRAIN_S
            if not self.service.drained():
                log.info("stopping: %d requests wait; again to stop at once", scheduler.depth)
            scheduler.refuse_new()
        else:
            self._deadline = 0.0
            self.force_exit = sig == signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None:
            # Twice, because an answer may just be on its way from the worker to its poll.
            self._ready = self._ready + 1 if self.service.drained() else 0
            if self._ready > 1 or time.monotonic() > self._deadline:
                self.service.state.scheduler.release_polls()
                self.should_exit = True
        stop: bool = await super().on_tick(counter)
        return stop


def run_server(
    models: Mapping[str, str],
    data_dir: Path,
    token: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[str], None] | None = None,
    only_served: bool = False,
    chat_template: str | None = None,
    dtype: str | None = None,
    substitutes: Mapping[str, str] | None = None,
    double: HostedDouble | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is accepted, within seconds, and return.

    Args:
        models: names served to clients -> directories or hub ids.
        data_dir: where runs and checkpoints are kept; created if it is not there.
        token: what clients must send as their API key. The SDK wants it to start with `tml-`.
        host: the address to listen on.
        port: the port, 0 for a free one.
        on_ready: called with the base URL once the port listens; models may still be loading.
        only_served: refuse base models that `models` does not name.
        chat_template: used in place of the models' own, as text.
        dtype: what base models are held in; by default float32 on a CPU, bfloat16 on a GPU.
        substitutes: losses that this engine does not have, and what is computed in their place.
        double: what is done as hosted Tinker does it, for tests.

    Raises:
        OSError: the address cannot be listened on, or `data_dir` cannot be made.
    """
    # Threads that spin while they wait make a step tens of times slower as soon as anything else
    # wants a core, and the client always does. Read by torch's OpenMP when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Some tens of microseconds they may: to be woken for each of the thousand small operations of a
    # token takes longer than these do.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    content.make_cache_dir()  # where what is measured of this machine is kept
    with private.files():  # checkpoints and what they are named are their user's alone
        service = Service(models, data_dir, only_served, chat_template, dtype, substitutes, double)
        _serve(service, token, host, port, on_ready)


def _serve(
    service: Service,
    token: str,
    host: str,
    port: int,
    on_ready: Callable[[str], None] | None,
) -> None:
    access = Access(token, frozenset({host}), any_address=host in WILDCARDS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        shown = "127.0.0.1" if host in WILDCARDS else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            build(service, access),
            log_config=None,  # as all else that is logged
            log_level="warning",
            access_log=False,
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=120,
            timeout_graceful_shutdown=15,
        )
        server = _Server(config, service)
        if on_ready is not None:
            on_ready(url)
        server.run(sockets=[listener])


def _follow_parent(lifeline: int, parent: int) -> None:
    """End this process when its parent is gone, however that came about.

    The parent holds the other end of `lifeline`, which the system closes with it. Its id is looked
    at too, for a parent whose forked children still hold that end. (PR_SET_PDEATHSIG would not do:
    it fires when the thread that started the engine ends.) Checkpoints are written atomically, so
    an end at any moment is safe.
    """

    def watch() -> None:
        while os.getppid() == parent:
            ready, _, _ = select.select([lifeline], [], [], PARENT_CHECK_S)
            if ready and not os.read(lifeline, 64):
                break
        os._exit(0)

    threading.Thread(target=watch, name="engine-lifeline", daemon=True).start()


def _models(pairs: list[str]) -> dict[str, str]:
    models = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            name = path = pair
        if is_address(path):
            raise UsageError("--model is an address", hint="a model is a directory or a hub id")
        models[name] = str(Path(path).resolve()) if pretrained.is_local(path) else path
    return models


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m posttrain_recipes.engine", description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH_OR_HUB_ID")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--chat-template", type=Path, help="a Jinja file for all models")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lifeline-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    # Whoever reads the end of a run's log wants what went wrong.
    logging.getLogger("posttrain_recipes.engine.requests").setLevel(logging.WARNING)
    if args.lifeline_fd is not None:
        _follow_parent(args.lifeline_fd, args.parent_pid)
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if len(token) < 16:
        print(
            f"set {TOKEN_VARIABLE} to the token clients must send: 16 characters or more",
            file=sys.stderr,
        )
        return 2

    def ready(url: str) -> None:
        log.info("listening on %s", url)
        if args.ready_fd is not None:
            with os.fdopen(args.ready_fd, "w") as pipe:
                pipe.write(url)

    template: Path | None = args.chat_template
    try:
        run_server(
            _models(args.model),
            args.data_dir,
            token,
            host=args.host,
            port=args.port,
            on_ready=ready,
            chat_template=None if template is None else template.read_text(encoding="utf-8"),
            dtype=args.dtype,
        )
    except PtlError as error:
        print(plain(redact(str(error))), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        told = f"cannot serve on {args.host}:{args.port}: {error}"
        print(plain(redact(told)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all that matters is on disk, and taking torch down takes a second or two
