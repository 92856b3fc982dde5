"""The engine's Prometheus metrics, and one log line for each HTTP request."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.registry import State
from posttrain_recipes.engine.wire import SampleResult

log = logging.getLogger("posttrain_recipes.engine.requests")

# Frequent requests that programs send by themselves: logged at debug level.
QUIET = ("retrieve_future", "retrieve_futures", "session_heartbeat", "telemetry", "healthz",
         "metrics", "config", "dynamic_config")  # fmt: skip


class Metrics:
    """The counters, increased by the event loop and by the worker thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started = time.time()
        self.requests: Counter[tuple[str, str, int]] = Counter()  # method, route, status
        self.trained = self.sampled = 0  # tokens
        self.failed: Counter[str] = Counter()
        # operation -> [how many, seconds]: computing, and from being accepted to being answered
        self.work: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        self.latency: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def answered(self, pending: Pending, result: Any, seconds: float) -> None:
        """Count a request that the worker has answered, after computing for `seconds`."""
        kind = pending.kind or "other"
        with self._lock:
            if isinstance(result, Exception):
                self.failed[kind] += 1
            elif isinstance(result, SampleResult):
                self.sampled += sum(sequence.tokens.size for sequence in result.sequences)
            else:
                self.trained += pending.tokens
            _add(self.latency[kind], time.monotonic() - pending.accepted)
            if seconds:
                _add(self.work[kind], seconds)

    def text(self, state: State) -> str:
        """All metrics in Prometheus' text format."""
        scheduler = state.scheduler
        with self._lock:
            lines = [
                *_family("requests_total", "counter", "HTTP requests.", (
                    ({"method": m, "route": r, "status": s}, n)
                    for (m, r, s), n in sorted(self.requests.items()))),
                *_family("failures_total", "counter", "Operations answered with an error.", (
                    ({"operation": k}, n) for k, n in sorted(self.failed.items()))),
                *_one("tokens_trained_total", "counter", "Tokens of forward_backward.",
                      self.trained),
                *_one("tokens_sampled_total", "counter", "Tokens generated.", self.sampled),
                *_summary("work_seconds", "Computing time of an operation.", self.work),
                *_summary("operation_seconds", "From accepting an operation to its answer.",
                          self.latency),
                *_one("queue_depth", "gauge", "Operations that wait.", scheduler.depth),
                *_one("busy", "gauge", "Whether an operation runs.", int(not scheduler.idle)),
                *_one("remembered_requests", "gauge", "Requests not yet forgotten.",
                      len(scheduler.futures)),
                *_one("sessions", "gauge", "Open sessions.", len(state.sessions)),
                *_one("base_models", "gauge", "Base models offered.", len(state.names)),
                *_one("adapters", "gauge", "Models in training.", len(state.models)),
                *_one("samplers", "gauge", "Samplers.", len(state.samplers)),
                *_one("process_resident_memory_bytes", "gauge", "Resident memory.", resident(),
                      prefix=""),
                *_one("process_start_time_seconds", "gauge", "Since 1970.", self.started,
                      prefix=""),
            ]  # fmt: skip
        return "\n".join(lines) + "\n"


class MetricsMiddleware:
    """ASGI middleware that counts HTTP requests and logs them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self._note(scope, status, time.monotonic() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        route = path
        for name, value in scope.get("path_params", {}).items():
            route = f"{route}/".replace(f"/{value}/", f"/{{{name}}}/", 1).rstrip("/")
        if "endpoint" not in scope:  # refused, or no such route: any path at all
            route = "none"
        self.metrics.requests[method, route, status] += 1
        level = logging.INFO
        if status >= 400 and status not in (404, 408, 410):
            level = logging.WARNING if status < 500 else logging.ERROR
        elif path.rpartition("/")[2] in QUIET:
            level = logging.DEBUG
        # A path may hold any character, and a log has one line for each request.
        shown = path.encode("unicode_escape").decode()[:200]
        log.log(level, "%s %s %d %.0f ms", method, shown, status, 1000 * seconds)


def resident() -> int:
    """This process' resident memory in bytes; the most it was, where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _add(pair: list[float], seconds: float) -> None:
    pair[0] += 1
    pair[1] += seconds


def _one(name: str, kind: str, what: str, value: float, prefix: str = "ptl_") -> list[str]:
    return _family(name, kind, what, [({}, value)], prefix)


def _family(
    name: str,
    kind: str,
    what: str,
    values: Iterable[tuple[Mapping[str, object], float]],
    prefix: str = "ptl_",
) -> list[str]:
    head = [f"# HELP {prefix}{name} {what}", f"# TYPE {prefix}{name} {kind}"]
    return [*head, *(f"{prefix}{name}{_labels(labels)} {value}" for labels, value in values)]


def _summary(name: str, what: str, pairs: Mapping[str, list[float]]) -> list[str]:
    lines = [f"# HELP ptl_{name} {what}", f"# TYPE ptl_{name} summary"]
    for kind, (count, seconds) in sorted(pairs.items()):
        labels = _labels({"operation": kind})
        lines += [f"ptl_{name}_count{labels} {count}", f"ptl_{name}_sum{labels} {seconds:.6f}"]
    return lines


def _labels(labels: Mapping[str, object]) -> str:
    def quoted(value: object) -> str:
        text = str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        return f'"{text}"'

    inner = ",".join(f"{name}={quoted(value)}" for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""
