"""`ptl watch`: a page that moves with a run."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option
from posttrain_recipes.cli.streams import say
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import RunRecord, Store, default_home


@click.command()
@click.argument("run", required=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port; 0 takes a free one.",
    show_default=True,
)
@click.option("--open/--no-open", "open_browser", default=False, help="Open it in a browser.")
@home_option
def watch(run: str | None, port: int, open_browser: bool, home: Path | None) -> None:
    """Show RUN on a page that moves while it goes on; a finished one is replayed.

    RUN is an id of 'ptl runs', or a recipe's name for its last run; by default the newest run. The
    page shows stages, curves, evals, the same prompts answered again and again, and tokens
    coloured by what is known of each. It is on 127.0.0.1 alone, and its address has the key to it.
    """
    from posttrain_recipes.watch import server

    folder = default_home(home)
    record = Store(folder).find(run) if run is not None else _newest(folder)
    token, sock = server.new_token(), server.listening(port)
    page, made = server.address(sock, token), server.server(folder, record.id, token, sock)
    click.echo(page)
    say(f"{record.id} is on this page; Ctrl-C ends it.")
    if open_browser:
        click.launch(page)
    with suppress(KeyboardInterrupt):
        made.run(sockets=[sock])
    say(f"\nended; 'ptl watch {record.id}' shows it again")


def _newest(home: Path) -> RunRecord:
    """The run that was begun last. Raises `UsageError` where there is none."""
    runs = Store(home).runs()
    if not runs:
        raise UsageError(
            f"there are no runs in {display_path(home)}",
            hint="'ptl run RECIPE' makes one; or name another --home",
        )
    return runs[-1]


class PageBeside(Reporter):
    """Starts the page in a process of its own as soon as a run has an id; it ends with this one."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[str] | None = None
        self.run = ""
        """The id of the run that it shows; empty where there is none."""

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        if self._process is not None:
            return
        from posttrain_recipes.watch import server

        token = server.new_token()
        with server.listening() as sock:  # the page waits for its server, and the run does not
            descriptor = sock.fileno()
            command = [sys.executable, "-m", "posttrain_recipes.watch", str(self._home.resolve())]
            self._process = subprocess.Popen(
                [*command, record.id, str(descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                text=True,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            with suppress(OSError):
                self._process.stdin.write(f"{token}\n")
                self._process.stdin.flush()
            self.run = record.id
            say(f"watch {server.address(sock, token)}")

    def close(self) -> None:
        """The run's process is about to end: so does the page, once it has told the end."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            say(f"the page ends here; 'ptl watch {self.run}' shows it again")
