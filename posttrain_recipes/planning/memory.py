"""How much memory training takes on the embedded engine of a machine without a GPU, from shapes.

The engine holds weights in its precision, and what the backward pass needs of the tokens that are
under way: it splits a batch into parts of `PART` tokens a core, or of one sequence where that is
longer. So a batch of more costs time and no memory, and the longest sequence decides. Where even
that is more than its share of the free memory, it keeps the inputs of some layers alone and
computes the rest again.
`tools/memory.py` measures a step beside the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from posttrain_recipes import machine
from posttrain_recipes.conversion import conversations, convert
from posttrain_recipes.machine import cores
from posttrain_recipes.options import ModelRef, references
from posttrain_recipes.planning import tokens
from posttrain_recipes.planning.plans import Plan, PlannedStage, model_location
from posttrain_recipes.plugin import DataMethod
from posttrain_recipes.records import Preference
from posttrain_recipes.shape import Shape

FLOAT = 4
"""Bytes of a number of an adapter, of attention and of logits; of others in float32."""
SHARE = 1 / 8
"""Of the free memory, that activations take before layers are recomputed (its MEMORY_SHARE)."""
OVERHEAD = 1.45
"""Memory that activations take, over what is in them: of temporaries too; measured."""
RUNTIME = 520 << 20
"""Bytes of the process without a model: Python, torch, the server."""
PART = 512
"""Tokens that a pass may have whatever the budget (the engine's MIN_PASS)."""
ACTIVATIONS = 1 << 24
"""The engine's budget of activations, in numbers (its ACTIVATIONS_BUDGET)."""
LOGITS = 1 << 24
"""The engine's budget of logits, in numbers (its LOGITS_BUDGET)."""
COPIED = 1 << 29
"""Weights of up to so many bytes are held again: with the adapter added in, for training in
float32, and packed for sampling (COPY_LIMIT)."""
MIN_SHARE = 64
"""Tokens that a core gets at least."""
SAMPLED = 250
"""Records whose length is looked at, the first ones."""
COPIES = 6
"""Of an adapter: weights, gradients, two moments, a snapshot to sample from and one being saved."""


def training(
    shape: Shape,
    rank: int,
    sequences: int,
    longest: int,
    threads: int,
    free: int | None = None,
    size: int = FLOAT,
    adapters: int = 1,
) -> int:
    """The peak of one step, in bytes.

    Args:
        sequences: of a batch, each of `longest` tokens.
        threads: cores that the engine computes with.
        free: bytes of memory that nobody uses; None for as many as are wanted.
        size: bytes of a weight.
        adapters: how many are trained, a policy and what is beside it; steps are one's at a time.
    """
    fixed = RUNTIME + size * shape.parameters
    head = FLOAT * shape.vocabulary * shape.hidden
    if size < FLOAT:  # logits are computed in float32
        fixed += head
    if size * shape.parameters <= COPIED:
        fixed += (2 if size == FLOAT else 1) * size * shape.layer_parameters + head
    fixed += FLOAT * shape.adapter(rank) * (COPIES * adapters + threads)
    used, part = in_flight(shape, sequences, longest, threads)
    rows = min(part, max(64, LOGITS // threads // shape.vocabulary))
    logits = 3 * rows * shape.vocabulary
    kept = size * part * shape.activations
    if free is not None:
        inputs = size * part * shape.layers * shape.hidden
        least = inputs + kept // shape.layers
        kept = max(least, min(kept, round(SHARE * free) // used))
    step = fixed + used * (round(OVERHEAD * kept) + FLOAT * logits)
    # While it is loaded, a model is there twice: the file's pages, and its weights.
    return max(RUNTIME + 2 * size * shape.parameters, step)


def in_flight(shape: Shape, sequences: int, longest: int, threads: int) -> tuple[int, int]:
    """Cores that compute at the same time, and tokens that each of them holds: as the engine's
    `BaseModel.shares` splits a batch."""
    total = sequences * longest
    wide = (8 * shape.hidden + 4 * shape.feed_forward) * shape.layers
    limit = max(PART, ACTIVATIONS // threads // wide)
    used = max(1, min(threads, sequences, total // MIN_SHARE))
    rounds = math.ceil(total / (used * limit))
    return used, math.ceil(sequences / (used * rounds)) * longest


# --- of a stage ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageMemory:
    """About what a stage takes at its peak."""

    bytes: int
    sequences: int
    """Of a batch, replies of groups and both sides of preferences counted."""
    longest: int
    """Tokens of the longest sequence, as far as is known."""
    hint: str
    """What takes less."""
    others: tuple[str, ...] = ()
    """Base models that the engine holds beside the stage's own."""
    beside: tuple[str, ...] = ()
    """Adapters that are trained beside the policy's."""

    def __str__(self) -> str:
        beside = f", beside {', '.join(self.others)}" if self.others else ""
        beside += f", an adapter more for {', '.join(self.beside)}" if self.beside else ""
        return (
            f"about {self.bytes / 2**30:.1f} GiB at its peak ({self.sequences:,} sequences of up "
            f"to {self.longest:,} tokens, on the CPU{beside})"
        )


def of_stage(plan: Plan, stage: PlannedStage) -> StageMemory | None:
    """What a stage takes that trains on the embedded engine of this machine; None where it does
    not, where there is a GPU, and where a model's files or options do not tell."""
    method = stage.method
    if plan.engine.name != "local" or method is None or isinstance(method, DataMethod):
        return None
    if not method.takes:  # it takes no step
        return None
    shape = Shape.read(Path(model_location(stage.model, plan.path.parent)))
    if shape is None or machine.GPU.exists():
        return None
    config = method.config
    sampled = _longest(plan, stage)
    bounds = [getattr(config, "max_length", None), shape.context, sampled]
    longest = min((bound for bound in bounds if bound is not None), default=None)
    if longest is None:
        return None
    sequences = getattr(config, "batch_size", 1) * getattr(config, "group_size", 1)
    sequences *= 2 if stage.wants is Preference else 1
    threads, rank = cores(), stage.lora.rank
    free, size = machine.available_memory(), 2 if plan.engine.precision else FLOAT
    others = _others(plan, stage)
    held = size * sum(one.parameters for one in others.values())
    least = training(shape, 1, 1, 1, threads, free, size)
    adapters = 1 + len(method.trains_beside)
    adapter = training(shape, rank, 1, 1, threads, free, size, adapters) - least
    peak = training(shape, rank, sequences, longest, threads, free, size, adapters)
    if held > peak - least:
        hint = f"take smaller ones for {', '.join(others)}, which take {held / 2**30:.1f} GiB"
    elif peak - least - adapter >= adapter:
        now = math.prod(in_flight(shape, sequences, longest, threads))
        halved = math.prod(in_flight(shape, max(1, sequences // 2), longest, threads))
        fewer = ", or 'batch_size'" if halved < now else ""
        hint = (
            f"lower 'max_length' (with 'truncate: true'){fewer}: {now:,} tokens are in memory at "
        )
        hint += "a time"
    else:
        hint = f"lower 'lora.rank': the adapter and its optimizer take {adapter / 2**30:.1f} GiB"
    hint = f"{hint}; or a smaller model"
    also = method.trains_beside
    return StageMemory(peak + held, sequences, longest, hint, tuple(others), also)


def _others(plan: Plan, stage: PlannedStage) -> dict[str, Shape]:
    """Base models beside the stage's own that the engine has loaded by then and never gives back:
    those of the stages up to this one, their teachers and judges among them. Shapes that are not
    known are left out."""
    folder = plan.path.parent
    found: dict[str, str] = {}
    for one in plan.stages:
        users = (one.method, *(reward for reward, _ in one.rewards), *(e.eval for e in one.evals))
        named = [
            ref.model for user in users if user for _, ref in references(user.config, ModelRef)
        ]
        for model in (one.model, *filter(None, named)):
            found.setdefault(model_location(model, folder), model)
        if one.name == stage.name:
            break
    found.pop(model_location(stage.model, folder), None)
    shapes = {model: Shape.read(Path(location)) for location, model in found.items()}
    return {model: shape for model, shape in shapes.items() if shape is not None}


def _longest(plan: Plan, stage: PlannedStage) -> int | None:
    """Tokens of the longest of the first records, with a reply where one is sampled."""
    data, wants = stage.data, stage.wants
    if data is None or wants is None or data.made_by or data.dataset.digest() is None:
        return None
    location = model_location(stage.model, plan.path.parent)
    count = tokens.counter(location, stage.renderer.chat_template)
    if count is None:
        return None
    try:
        records = [convert(record, wants) for record in islice(data.dataset.load(), SAMPLED)]
        lengths = [count(one) for record in records for one in conversations(record)]
    except Exception:  # preflight and the run say what is wrong with the data
        return None
    reply = getattr(stage.method and stage.method.config, "max_tokens", 0) or 0
    return max(lengths) + reply if lengths else None
