"""A proxy on the loopback that does to requests what networks, gateways and clients do to them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

FAULTS = (
    "cut_before",  # the connection drops, the engine never hears of the request
    "cut_after",  # the engine does what was asked, and its answer is lost
    "cut_half",  # as above, in the middle of the answer
    "429",
    "500",
    "503",
    "500_after",  # the engine does what was asked, and a gateway says that it failed
    "slow",  # the answer comes in small pieces
    "twice",  # the request reaches the engine twice, at the same time
    "late",  # the request reaches the engine after the one that is sent next, or 0.2 s late
)
LATE_S = 0.2


@dataclass
class Message:
    """A request or a response: its first line, its other header lines, its body."""

    first: bytes
    headers: list[bytes]
    body: bytes

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Message | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *headers = head[:-4].split(b"\r\n")
        fields = {k.strip().lower(): v.strip() for k, _, v in (h.partition(b":") for h in headers)}
        body = b""
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif length := int(fields.get(b"content-length", b"0")):
            body = await reader.readexactly(length)
        return cls(first, headers, body)

    def encode(self, connection: bytes = b"close") -> bytes:
        kept = [
            line
            for line in self.headers
            if line.split(b":")[0].lower()
            not in (b"connection", b"transfer-encoding", b"content-length")
        ]
        length = b"content-length: %d" % len(self.body)
        lines = [self.first, *kept, length, b"connection: " + connection]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body

    @property
    def path(self) -> str:
        """The last part of what is asked for: `forward_backward`."""
        return self.first.split(b" ")[1].split(b"?")[0].decode().split("/")[-1]


class CutError(Exception):
    """The connection is to be dropped."""


@dataclass
class FaultyProxy:
    """Listens on a port of its own and passes requests on to `target`, a port of this machine.

    `fault(path, seen)` says what to do to a request; `seen` is how often this very request, by path
    and body, has come before.
    """

    target: int
    fault: Callable[[str, int], str | None] = lambda path, seen: None
    after: Callable[[str], None] = lambda path: None
    """Called with the path once the engine has answered, before the client hears."""
    port: int = 0
    struck: list[tuple[str, str]] = field(default_factory=list)
    """(path, fault) of every request that something was done to."""

    def __enter__(self) -> Self:
        self._seen: dict[tuple[str, bytes], int] = {}
        self._passed: asyncio.Event
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stop, self._passed = asyncio.Event(), asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while request := await Message.read(reader):
                await self._answer(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, CutError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()  # dropped, not closed: nothing half sent arrives

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> None:
        # The SDK numbers the sampler anew each time that it sends this request again.
        key = (request.path, re.sub(rb'"sampling_session_seq_id": ?\d+', b"", request.body))
        seen = self._seen.get(key, 0)
        self._seen[key] = seen + 1
        kind = self.fault(request.path, seen)
        if kind is None:
            writer.write((await self._forward(request)).encode(b"keep-alive"))
            return
        self.struck.append((request.path, kind))
        if kind == "cut_before":
            raise CutError
        if kind in ("429", "500", "503"):
            writer.write(_refusal(kind))
            return
        if kind == "late":
            try:
                self._passed.clear()
                await asyncio.wait_for(self._passed.wait(), LATE_S)
            except TimeoutError:
                pass
        if kind == "twice":
            answer, _ = await asyncio.gather(self._forward(request), self._forward(request))
        else:
            answer = await self._forward(request)
        if kind == "cut_after":
            raise CutError
        if kind == "500_after":
            writer.write(_refusal("500"))
            return
        data = answer.encode(b"keep-alive")
        if kind == "cut_half":
            writer.write(data[: len(data) // 2])
            await writer.drain()
            raise CutError
        pieces = 8 if kind == "slow" else 1
        size = len(data) // pieces + 1
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if kind == "slow":
                await asyncio.sleep(0.03)

    async def _forward(self, request: Message) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            writer.write(request.encode())
            await writer.drain()
            answer = await Message.read(reader)
            assert answer is not None
        finally:
            writer.close()
        self._passed.set()
        await asyncio.to_thread(self.after, request.path)
        return answer


def _refusal(status: str) -> bytes:
    body = b'{"detail": "a gateway is unwell"}'
    return (
        b"HTTP/1.1 %s Unwell\r\ncontent-type: application/json\r\nretry-after-ms: 100\r\n"
        b"content-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)
    )
