"""MLflow servers for tests: a real one, a gate before it that asks who comes, and an S3 store."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER, PASSWORD = "ada", "correct-horse-battery"
BUCKET = "runs"


class Server:
    """`mlflow server` on a port of the system's choice, to be stopped and started at will."""

    def __init__(
        self,
        folder: Path,
        artifacts: str | None = None,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.artifacts = artifacts or str(folder / "artifacts")
        self.environment, self.options = environment or {}, options
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", self.artifacts, *self.options]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **self.environment,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                threading.Event().wait(0.1)
            else:
                return

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


READS = ("/runs/search", "/experiments/search")
"""Routes that look, and are posted to."""


class Guard(http.server.ThreadingHTTPServer):
    """Lets through to a server who knows the password, and nobody else."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.behind = port
        self.asks = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        """The header that it knows people by."""
        self.may_write = True
        self.refused = 0
        self.answers = threading.Event()
        """Unset, requests wait."""
        self.answers.set()
        self.held = threading.Event()
        """A request waits: the only one, since one thread makes them in turn."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Gate(http.server.BaseHTTPRequestHandler):
    server: Guard

    def _pass(self) -> None:
        if not self.server.answers.is_set():
            self.server.held.set()
            self.server.answers.wait()
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Authorization") != self.server.asks:
            self.server.refused += 1
            self._answer(401, b"who are you?", {})
            return
        writes = self.command != "GET" and not self.path.endswith(READS)
        if writes and not self.server.may_write:
            # As MLflow's own basic-auth app says it.
            told = {"error_code": "PERMISSION_DENIED", "message": "Permission denied"}
            self._answer(403, json.dumps(told).encode(), {"Content-Type": "application/json"})
            return
        inner = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            inner.request(self.command, self.path, body, headers)
            reply = inner.getresponse()
            kind = {"Content-Type": reply.getheader("Content-Type") or "text/plain"}
            self._answer(reply.status, reply.read(), kind)
        except OSError:
            self._answer(503, b"nobody there", {})
        finally:
            inner.close()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """An S3-compatible store with a bucket; the environment that MLflow finds it by."""
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        found = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        bucket(found).create()
        yield found
    finally:
        store.stop()


def bucket(environment: Mapping[str, str]) -> Any:
    """The bucket of `s3`."""
    import boto3

    return boto3.resource(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    ).Bucket(BUCKET)
