"""`ptl ui`: the runs in a browser."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import click

from posttrain_recipes import private
from posttrain_recipes.cli.options import check_host, home_option
from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.shown import redact
from posttrain_recipes.store import default_home
from posttrain_recipes.tracking import mlstore

FIRST_PORT = 5000
START_SECONDS = 120.0

SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise the server starts a dozen processes for jobs that nothing here submits.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on. [default: 5000, or the next free one]")
@home_option
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def ui(host: str, port: int | None, home: Path | None, open_browser: bool) -> None:
    """Show the runs in MLflow until Ctrl-C.

    Where MLFLOW_TRACKING_URI names a server, the runs are there: its address is printed and
    nothing is started.
    """
    home = default_home(home)
    check_host(host)
    uri = mlstore.configured_uri()
    if uri and mlstore.is_remote(uri):
        _show(redact(uri), None, open_browser)
        return
    experiment = None
    if uri is None:
        if not (home / mlstore.DATABASE).exists():
            raise UsageError(
                f"There are no runs in {display_path(home)}.",
                hint="Run a recipe first, with 'ptl run RECIPE', or name another --home.",
                code="no-such-run",
            )
        uri, experiment = mlstore.local_uri(home), _experiment(home / mlstore.DATABASE)
    port = _usable_port(host, port)
    if note := mlstore.prepare_to_serve(home):
        click.echo(note, err=True)
    with _server(uri, host, port, (home / "artifacts").resolve().as_uri()) as page:
        _show(page, experiment, open_browser)
        click.echo("Ctrl-C ends it.", err=True)
        while True:
            time.sleep(3600)


def _experiment(database: Path) -> int | None:
    """The id of the experiment that runs are in, without the second that importing mlflow takes."""
    query = "SELECT experiment_id FROM experiments WHERE name = ?"
    with closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute(query, (mlstore.EXPERIMENT,)).fetchone()
        except sqlite3.Error:
            # The server will say better what is wrong with the file.
            return None
    return int(row[0]) if row else None


def _show(page: str, experiment: int | None, open_browser: bool) -> None:
    place = "" if experiment is None else f"/{experiment}/runs"
    # Without the query MLflow opens its page for agents, which has no charts.
    address = f"{page.rstrip('/')}/#/experiments{place}?workflowType=machine_learning"
    click.echo(address)
    if open_browser:
        click.launch(address)


def _usable_port(host: str, port: int | None) -> int:
    """`port` if it is free, or else the first free one from 5000 on."""
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # A server that ended a moment ago does not keep its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                reason = error
            else:
                return candidate
    raise PtlError(
        f"Cannot listen on {host}:{port or FIRST_PORT}.",
        why=reason.strerror,
        hint="Name another --port or --host.",
        code="tracking",
    )


@contextmanager
def _server(uri: str, host: str, port: int, artifacts: str) -> Iterator[str]:
    """An MLflow server for as long as the context lasts; its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host]
    command += ["--port", str(port), "--default-artifact-root", artifacts]
    environment = {**SERVER_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            umask=private.UMASK,
            # Ctrl-C reaches this process alone, which then ends the whole group.
            start_new_session=True,
        )
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            page = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            _wait(server, page, log)
            yield page
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(server)


def _wait(server: subprocess.Popen[bytes], page: str, log: IO[str]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    # Straight to the server: the proxy that the environment names cannot reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(f"{page}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    lines = [line for line in redact(log.read()).splitlines() if line.strip()]
    raise PtlError(
        "MLflow's server does not answer.",
        why="\n       ".join(lines[-5:]) or None,
        hint="'ptl report RUN --open' shows a run without a server.",
        code="tracking",
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
