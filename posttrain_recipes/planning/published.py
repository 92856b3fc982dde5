"""The table of prices that hosted Tinker publishes for machines, read into one of one's own.

It was not reachable from where this was written. The form is the one that programs read which use
it: a JSON list with an object for each model, of strings such as

    {"tinker_id": "Qwen/Qwen3-8B", "context": "32K", "prefill": "$0.195",
     "cached_prefill": "$0.039", "sample": "$0.60", "train": "$0.44", "note": "..."}

in USD per million tokens. What is not of that form is refused, and nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from posttrain_recipes.atomic import write_atomic
from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.planning import pricing

ADDRESS = "https://tinker-docs.thinkingmachines.ai/tinker/models.json"
ANSWER_S = 20.0
LARGEST = 5_000_000
"""Bytes."""
DEAREST = 10_000.0
"""USD per million tokens: what comes to more is no such price."""
OFFLINE = "the prices that are kept stay as they are"


def refresh(home: Path, address: str = ADDRESS, today: date | None = None) -> Path:
    """Read the published table into `prices.yaml` of a home, whole or not at all.

    Raises:
        UsageError: the table that is there is one of the user's own.
        PtlError: the address does not answer, or what it answers is no table of prices.
    """
    path = home / pricing.NAME
    source = pricing.source_of(path)
    if source is not None and not source.startswith(("http://", "https://")):
        raise UsageError(
            f"{display_path(path)} is a table of your own (source: {source}), and is left as it is",
            hint="move it away first, or name it with PTL_PRICES: that goes before",
            code="prices",
        )
    models = parsed(_asked(address), address)
    when = today or date.today()
    head = "# Written by 'ptl prices --refresh'. USD per million tokens.\n"
    table = {"date": when, "source": address, "models": models}
    write_atomic(path, head + yaml.safe_dump(table, sort_keys=False, allow_unicode=True))
    return path


def parsed(text: str, address: str) -> dict[str, dict[str, Any]]:
    """Prices by model. Raises PtlError for what is no table of prices."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise _nonsense(address, "it is no JSON") from None
    if isinstance(rows, Mapping):
        rows = rows.get("models")
    if not isinstance(rows, list) or not rows:
        raise _nonsense(address, "it has no list of models")
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        name = row.get("tinker_id") if isinstance(row, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            raise _nonsense(address, f"model {number} of it has no 'tinker_id'")
        if name in found:
            raise _nonsense(address, f"{name} stands in it twice")
        prices: dict[str, Any] = {}
        for kind in pricing.KINDS:
            try:
                price = _price(row.get(kind))
            except ValueError as error:
                raise _nonsense(address, f"{kind} of {name} is {error}") from None
            prices |= {} if price is None else {kind: price}
        note = row.get("note")
        found[name] = {**prices, **({"note": note} if isinstance(note, str) and note else {})}
    if not any(kind in one for one in found.values() for kind in pricing.KINDS):
        raise _nonsense(address, "no model in it has a price")
    return found


def _price(value: Any) -> float | None:
    """USD per million tokens; None where there is none. Raises ValueError with what is there."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "-", "—", "–", "N/A")):
        return None
    try:
        text = value.strip().removeprefix("$").replace(",", "") if isinstance(value, str) else value
        price = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 <= price <= DEAREST:
        raise ValueError(f"{str(value)[:40]!r}, which is no price")
    return price


def _asked(address: str) -> str:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if not address.startswith(("http://", "https://")):
        raise UsageError(f"'{address}' is no http address")
    request = Request(address, headers={"Accept": "application/json", "User-Agent": "ptl"})
    try:
        with urlopen(request, timeout=ANSWER_S) as answer:
            body: bytes = answer.read(LARGEST + 1)
    except HTTPError as error:
        raise PtlError(
            f"{address} answers {error.code} {error.reason}; {OFFLINE}", code="prices"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise PtlError(f"{address} cannot be reached ({why}); {OFFLINE}", code="prices") from None
    if len(body) > LARGEST:
        raise _nonsense(address, f"it has more than {LARGEST:,} bytes")
    return body.decode("utf-8", "replace")


def _nonsense(address: str, why: str) -> PtlError:
    return PtlError(
        f"what {address} answers is no table of prices: {why}; {OFFLINE}",
        hint="write prices.yaml by hand: 'ptl prices' shows the one that is used",
        code="prices",
    )
