"""How much memory training takes on the embedded engine of a machine without a GPU, from shapes.

The engine holds weights in float32, and what the backward pass needs of the tokens that are under
way: it splits a batch into parts of `PART` tokens a core, or of one sequence where that is longer.
So a batch of more costs time and no memory, and the longest sequence decides.
`tools/memory.py` measures a step beside the estimate.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.conversion import conversations, convert
from posttrain_recipes.cores import cores
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning import tokens
from posttrain_recipes.planning.plans import Plan, PlannedStage, model_location
from posttrain_recipes.plugin import DataMethod
from posttrain_recipes.records import Preference

FLOAT = 4
"""Bytes of a number."""
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
MERGED = 1 << 27
"""Models of up to so many parameters are held twice: with the adapter added in (MERGE_LIMIT)."""
MIN_SHARE = 64
"""Tokens that a core gets at least."""
GPU = Path("/dev/nvidiactl")
"""There where the engine would compute on a GPU, whose memory this says nothing of."""
SAMPLED = 250
"""Records whose length is looked at, the first ones."""
COPIES = 6
"""Of an adapter: weights, gradients, two moments, a snapshot to sample from and one being saved."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, as its config has them."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    groups: int
    """Key and value heads."""
    width: int
    """Of a head."""
    vocabulary: int
    tied: bool
    """Whether one matrix is embedding and output layer."""
    context: int | None = None
    """Tokens of a sequence."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """From a `config.json`; None where it lacks what is needed."""
        config = {**config, **(config.get("text_config") or {})}
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                int(config["num_hidden_layers"]),
                hidden,
                int(config["intermediate_size"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or hidden // heads),
                int(config["vocab_size"]),
                bool(config.get("tie_word_embeddings", True)),
                config.get("max_position_embeddings"),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear layers: q, k, v, out, gate, up, down."""
        q, kv = self.heads * self.width, self.groups * self.width
        h, f = self.hidden, self.feed_forward
        return [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]

    @property
    def layer_parameters(self) -> int:
        """Of all layers."""
        return self.layers * sum(a * b for a, b in self._projections)

    @property
    def parameters(self) -> int:
        """Of the model."""
        matrices = 1 if self.tied else 2
        return self.layer_parameters + matrices * self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter on attention and MLP."""
        return self.layers * rank * sum(a + b for a, b in self._projections)

    @property
    def activations(self) -> int:
        """Numbers that a backward pass needs of one token: of each layer its inputs and norms,
        queries, keys and values as they are computed and as attention reads them, what attention
        gives, and the MLP's."""
        q, kv = self.heads * self.width, self.groups * self.width
        return self.layers * (4 * self.hidden + 2 * (q + 2 * kv) + 2 * q + 4 * self.feed_forward)


def training(shape: Shape, rank: int, sequences: int, longest: int, threads: int) -> int:
    """The peak of one step, in bytes.

    Args:
        sequences: of a batch, each of `longest` tokens.
        threads: cores that the engine computes with.
    """
    fixed = RUNTIME + FLOAT * shape.parameters
    if shape.parameters <= MERGED:
        fixed += FLOAT * shape.layer_parameters
    fixed += FLOAT * shape.adapter(rank) * (COPIES + threads)
    used, part = in_flight(shape, sequences, longest, threads)
    rows = min(part, max(64, LOGITS // threads // shape.vocabulary))
    logits = 3 * rows * shape.vocabulary
    step = fixed + FLOAT * used * (round(OVERHEAD * part * shape.activations) + logits)
    # While it is loaded, a model is there twice: the file's pages, and its weights.
    return max(RUNTIME + 2 * FLOAT * shape.parameters, step)


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

    def __str__(self) -> str:
        return (
            f"about {self.bytes / 2**30:.1f} GiB at its peak ({self.sequences:,} sequences of up "
            f"to {self.longest:,} tokens, on the CPU)"
        )


def of_stage(plan: Plan, stage: PlannedStage) -> StageMemory | None:
    """What a stage takes that trains on the embedded engine of this machine; None where it does
    not, where there is a GPU, and where a model's files or options do not tell."""
    method = stage.method
    if plan.engine.name != "local" or method is None or isinstance(method, DataMethod):
        return None
    shape = _shape(model_location(stage.model, plan.path.parent))
    if shape is None or GPU.exists():
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
    least = training(shape, 1, 1, 1, threads)
    adapter = training(shape, rank, 1, 1, threads) - least
    peak = training(shape, rank, sequences, longest, threads)
    if peak - least - adapter >= adapter:
        now = math.prod(in_flight(shape, sequences, longest, threads))
        halved = math.prod(in_flight(shape, max(1, sequences // 2), longest, threads))
        fewer = ", or 'batch_size'" if halved < now else ""
        hint = (
            f"lower 'max_length' (with 'truncate: true'){fewer}: {now:,} tokens are in memory at "
        )
        hint += "a time"
    else:
        hint = f"lower 'lora.rank': the adapter and its optimizer take {adapter / 2**30:.1f} GiB"
    return StageMemory(peak, sequences, longest, f"{hint}; or a smaller model")


def available() -> int | None:
    """Bytes that processes of this machine, and of this container, may still take; None where the
    system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(int(told.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds in ("", "memory"):
                found += _left(Path("/sys/fs/cgroup") / kinds, name.strip("/"))
    return min(found, default=None)


def _left(root: Path, name: str) -> Iterator[int]:
    """What is left of the limits of a cgroup and of those that it is in; v2, or v1 `memory`."""
    place = root / name
    for folder in (place, *place.parents):
        for most, now in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limit = int((folder / most).read_text(encoding="ascii"))
                taken = int((folder / now).read_text(encoding="ascii"))
                stat = (folder / "memory.stat").read_text(encoding="ascii").split()
                taken -= int(stat[stat.index("inactive_file") + 1])  # given back when it is wanted
                yield limit - taken
        if folder == root:
            return


def _shape(location: str) -> Shape | None:
    try:
        if ggufs.is_gguf(location):
            config = ggufs.shape(location)
        else:
            config = json.loads((Path(location) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, PtlError):
        return None
    return Shape.of(config) if isinstance(config, dict) else None


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
