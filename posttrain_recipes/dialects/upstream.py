"""The server behind a translator: requests to it, and waiting for what it answers later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

PREFIX = "/api/v1"
POLL_S = 30.0
"""How long one question after an answer may take; the SDK itself gives up after 45."""
ANSWER_S = 120.0
"""How long a server may take over anything else."""
LOCAL = ("127.0.0.1", "localhost", "::1")


class DeclinedError(Exception):
    """A request that is not done, with its HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class FailedError(Exception):
    """A request that the server accepted and then failed on, in its words."""


@dataclass
class Upstream:
    """A client of the server. Nothing of a key is ever in what it says."""

    http: httpx.AsyncClient

    @classmethod
    def open(cls, address: str, key: str) -> Upstream:
        """A client that shows `key` to the server at `address`."""
        import httpx

        return cls(
            httpx.AsyncClient(
                base_url=address.rstrip("/"),
                headers={"X-API-Key": key},
                timeout=httpx.Timeout(ANSWER_S, connect=10.0, pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                trust_env=httpx.URL(address).host not in LOCAL,
                follow_redirects=False,
            )
        )

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """What the server answers. Raises `DeclinedError` 503 where it cannot be reached."""
        import httpx

        try:
            return await self.http.request(method, path, **options)
        except httpx.TransportError as error:
            raise DeclinedError(
                503, f"the server cannot be reached: {type(error).__name__} {error}"
            ) from None

    async def post(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to POST `name`. Raises `DeclinedError` with the server's words."""
        got = await self.send("POST", f"{PREFIX}/{name}", json=body)
        if got.status_code >= 400:
            raise DeclinedError(got.status_code, detail(got))
        found: dict[str, Any] = got.json()
        return found

    async def poll(self, request_id: str, accept: str = "*/*") -> httpx.Response | None:
        """The answer to an earlier request, or None where there is none yet.

        Raises:
            FailedError: the server failed on it.
            DeclinedError: it does not know it (410).
        """
        import httpx

        try:
            got = await self.http.post(
                f"{PREFIX}/retrieve_future",
                json={"request_id": request_id},
                headers={"Accept": accept},
                timeout=httpx.Timeout(POLL_S, connect=10.0, pool=None),
            )
        except httpx.ReadTimeout:
            return None
        except httpx.TransportError as error:
            raise DeclinedError(503, f"the server cannot be reached: {error}") from None
        if got.status_code == 408 or _says(got, "type", "try_again"):
            return None
        if got.status_code == 404:
            raise DeclinedError(410, f"the server does not know the request {request_id} any more")
        # 500 with these words is how it tells of a failure that it kept no words of.
        if got.status_code in (400, 422) or _says(got, "detail", "Unknown error"):
            raise FailedError(detail(got))
        return got

    async def result(self, request_id: str) -> dict[str, Any]:
        """The JSON answer to an earlier request, however long it takes. Raises as `poll` does."""
        while True:
            got = await self.poll(request_id)
            if got is None:
                continue
            if got.status_code >= 400:
                raise DeclinedError(got.status_code, detail(got))
            found: dict[str, Any] = got.json()
            if "error" in found:
                raise FailedError(str(found["error"]))
            return found


def _says(got: httpx.Response, name: str, value: str) -> bool:
    if "json" not in got.headers.get("content-type", ""):
        return False
    try:
        found = got.json()
    except ValueError:
        return False
    return isinstance(found, dict) and found.get(name) == value


def detail(got: httpx.Response) -> str:
    """What an answer says is wrong."""
    try:
        found = got.json()
    except ValueError:
        return got.text.strip()[:500] or f"HTTP {got.status_code}"
    told = found.get("detail") or found.get("message") if isinstance(found, dict) else found
    if isinstance(told, list):  # of FastAPI: one entry a field
        told = "; ".join(
            f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg')}"
            for one in told
            if isinstance(one, dict)
        )
    return str(told or found)[:500]
