"""Which form of the protocol a server speaks, by the shape of answers that change nothing."""

from __future__ import annotations

from posttrain_recipes.dialects.upstream import LOCAL, PREFIX

ASK_S = 10.0
"""How long a server may take over each question."""
SINCE_THEN = {"client/dynamic_config": {"sdk_version": "0.38.0"}, "sessions/search": {"limit": 1}}
"""Routes that only read, with what is sent to them, which servers have who speak the current form:
the SDK's client asks the first of them as it starts."""
UNKNOWN = (404, 405, 501)


def told(address: str, key: str) -> str | None:
    """`current` or `0.25`; None where the server does not answer, or not as a Tinker server.

    A server that has none of the newer routes, and says what it serves, speaks 0.25.
    """
    import httpx

    client = httpx.Client(
        base_url=address.rstrip("/"),
        headers={"X-API-Key": key},
        timeout=ASK_S,
        trust_env=httpx.URL(address).host not in LOCAL,
    )
    try:
        with client:
            served = client.get(f"{PREFIX}/get_server_capabilities")
            if served.status_code != 200 or not _lists_models(served):
                return None
            for route, body in SINCE_THEN.items():
                status = client.post(f"{PREFIX}/{route}", json=body).status_code
                if status in (401, 403) or (status >= 500 and status not in UNKNOWN):
                    return None
                if status not in UNKNOWN:
                    return "current"
    except (httpx.HTTPError, ValueError):
        return None
    return "0.25"


def _lists_models(answer: object) -> bool:
    found = answer.json()  # type: ignore[attr-defined]
    return isinstance(found, dict) and isinstance(found.get("supported_models"), list)
