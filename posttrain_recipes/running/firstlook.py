"""How well a base model reads the data, before anything is trained: no better than chance is told.

Weights that were converted wrongly, or that belong to another tokenizer, load, train and lower
their loss like any others. A guess among all V tokens has a negative log-likelihood (nll) of ln(V)
nats; a language model has about a third of that on text that it can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from posttrain_recipes import models
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning import needs
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import Checkpoint
from posttrain_recipes.running.findings import PreflightFinding, Verdict
from posttrain_recipes.running.serving import Serving

NEAR = 0.65
"""An nll of more than this share of ln(V) is told: what a model can read takes less than half, as
sums without a word of text do, and a tokenizer of another model two thirds or more."""
GUESS = 0.95
"""With more than this share it reads the data no better than a guess."""
RECORDS = 8
"""Records that are read."""
LENGTH = 256
"""Tokens that are read of each."""
FEW = 32
"""Fewer tokens than this tell nothing."""
NEEDS = "prompt_logprobs"


def findings(
    plan: Plan, serving: Serving, first: Mapping[str, Sequence[Sequence[int]]]
) -> Iterator[PreflightFinding]:
    """A finding for each base model of which records are there.

    Args:
        first: by base model, records as token ids.
    """
    for model, sequences in first.items():
        found = look(plan, serving, model, sequences)
        if found is not None:
            yield found


def look(
    plan: Plan, serving: Serving, model: str, sequences: Sequence[Sequence[int]]
) -> PreflightFinding | None:
    """Have a base model read a few records, once.

    None where they are too short to tell, where the engine is not known to do it, and where it
    bills: its weights are its own.
    """
    if plan.engine.billed or (plan.engine.name != "local" and NEEDS not in needs.of(plan)):
        return None
    name = f"weights of {model}"
    try:
        nll, tokens = _nll(serving, model, sequences[:RECORDS])
    except PtlError as error:
        # The embedded engine has to do no less for the run.
        verdict: Verdict = "failed" if plan.engine.name == "local" else "warning"
        return PreflightFinding.of(name, error, "not looked at: ", verdict)
    rows = serving.renderer(model).rows
    if rows is None or tokens < FEW:
        return None
    chance = math.log(rows)
    told = f"{nll:.2f} nats a token on {tokens:,} tokens of the data; a guess has ln({rows:,}) = "
    told += f"{chance:.2f}"
    if nll <= NEAR * chance:
        return PreflightFinding(name, "ok", told)
    if model in models.BUNDLED:  # its files are what they say: it knows the shipped data alone
        return PreflightFinding(name, "ok", f"{told}: this bundled model never saw such text")
    how = "no" if nll > GUESS * chance else "hardly"
    return PreflightFinding(
        name,
        "warning",
        f"the base model {model} reads the data {how} better than a guess: {told}",
        "its weights or its tokenizer are not what the files say (converted wrongly, or of another "
        "model); or it never saw such text, and learns all of it here",
    )


def _nll(serving: Serving, model: str, sequences: Sequence[Sequence[int]]) -> tuple[float, int]:
    """The mean over tokens that stand for text, and how many those are: those that begin and end a
    turn may be new to a base model."""
    import tinker

    special = serving.renderer(model).special
    sampler = serving.sampler(Checkpoint(model))
    read = [list(ids[:LENGTH]) for ids in sequences if len(ids) > 1]
    futures = [sampler.compute_logprobs(tinker.ModelInput.from_ints(ids)) for ids in read]
    losses = []
    for ids, future in zip(read, futures, strict=True):
        logprobs = serving.wait(future)
        pairs = zip(ids[1:], logprobs[1:], strict=True)
        losses += [-value for token, value in pairs if value is not None and token not in special]
    return math.fsum(losses) / max(1, len(losses)), len(losses)
