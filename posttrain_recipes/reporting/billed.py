"""What a service says that it billed for a run, in words, beside what was estimated."""

from __future__ import annotations

from posttrain_recipes.planning.pricing import show_usd
from posttrain_recipes.store import RunRecord


def told(run: RunRecord) -> str | None:
    """One line; None where the service was not asked."""
    found = run.billed
    if found is None:
        return None
    when = f"asked {found.asked[:16].replace('T', ' ')}"
    if found.why:
        return f"not told by the service: {found.why} ({when})"
    tokens = found.train + found.prefill + found.sample
    if not tokens and not found.usd:
        return f"nothing by the service's account so far, which lags behind ({when})"
    text = f"{show_usd(found.usd)} by the service's account, before credits and without storage"
    own = [stage for stage in run.stages if stage.status != "reused"]
    ahead = [stage.estimate.usd for stage in own if stage.estimate and not stage.estimate.unknown]
    if ahead and None not in ahead:
        text += f" ({show_usd(sum(usd or 0.0 for usd in ahead))} expected)"
    text += f": {tokens:,} tokens"
    if found.unpriced:
        text += f", of which {found.unpriced:,} have no price yet"
    return f"{text} ({when})"
