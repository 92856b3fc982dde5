"""Merging: one adapter of several, without training.

    linear:  W = W_0 + sum_i w_i (W_i - W_0)
    slerp:   W = W_0 + sin((1 - t) a) / sin a (W_1 - W_0) + sin(t a) / sin a (W_2 - W_0)

for each matrix W of the base model, with W_i what it is with the adapter i, W_0 what they are
counted from (the base model, unless `since` says otherwise), t = w_2, and a the angle between W_1 -
W_0 and W_2 - W_0 as vectors. Weights of 1/n are a model soup (Wortsman et al. 2022, arXiv
2203.05482), others task arithmetic (Ilharco et al. 2022, arXiv 2212.04089): 1 each adds skills, -1
takes one away. Slerp is Shoemake's (1985, Animating rotation with quaternion curves), of the
updates as they are: with equal norms it keeps the norm, which a mean of two that are at an angle
does not.

The sum of adapters has the rank of all of them together. It is brought to the rank of the stage
(`lora: {rank: ...}`, by default the recipe's) by singular values, and what that loses of the
update's norm is `merge/lost`; a stage whose rank is the sum of theirs loses nothing.

Tinker's protocol exports adapters and takes none back, so that this needs the embedded engine.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    Checkpoint,
    LoraFactorPair,
    LoraUpdate,
    Method,
    ModelRef,
    PluginConfig,
    PtlError,
    Record,
    Resume,
    StageContext,
    UsageError,
    checkpoint_name,
)
from posttrain_recipes.training import merging

log = logging.getLogger(__name__)
NOTHING = 1e-20
"""Share of the squares of its parts' norms up to which the merged update is 0, but for rounding."""
TOLD = 0.01
"""Share of the norm that is lost from which it is told."""


class Merge(Method):
    """Merge the adapters of earlier stages into one, without training: soups, sums, slerp.

    When: skills that were trained apart are wanted in one model and their data cannot be mixed any
    more; runs over several seeds are at hand (their mean is often better than each). When not: the
    data are there (training on all of them is better); the stages went far from where they began,
    or from different starts.
    """

    name = "merge"
    takes: ClassVar[tuple[type[Record], ...]] = ()
    reads_adapters = True
    starts_over = True
    loss = "none: W = W_0 + sum(w_i * (W_i - W_0)), or along an arc; log p is not touched"
    paper = "Wortsman et al. 2022, Model soups, arXiv 2203.05482"

    class Config(PluginConfig):
        """Options of merging."""

        of: list[ModelRef] = Field(min_length=2)
        """What is merged, as [{stage: first}, {stage: second}]: stages of one base model, whose
        adapters are of the same layers, of any ranks; `base` counts as an update of 0."""
        weights: list[float] | None = None
        """What each of them counts; by default 1/n, a model soup. They need not add up to 1: [1, 1]
        adds two skills, [1, -1] takes the second away. For slerp their sum is 1."""
        how: Literal["linear", "slerp"] = "linear"
        """linear: the weighted sum; slerp: of two, along the arc between them, matrix by matrix."""
        since: ModelRef | None = None
        """What their updates are counted from: a stage that all of them started from; by default
        the base model. For linear it changes nothing where the weights add up to 1."""

        @model_validator(mode="after")
        def _fit_together(self) -> Merge.Config:
            weights, n = self.shares, len(self.of)
            if len(weights) != n:
                raise ValueError(f"weights are {len(weights)}, and of has {n}; give each its own")
            if not all(map(math.isfinite, weights)) or not any(weights):
                raise ValueError("weights have to be numbers that are not all 0")
            if self.how == "slerp" and n != 2:
                raise ValueError(f"how: slerp goes from one to another, and of has {n}")
            if self.how == "slerp" and abs(math.fsum(weights) - 1) > 1e-6:
                raise ValueError("for how: slerp the weights add up to 1, as [0.7, 0.3]")
            if self.since in self.of:
                raise ValueError(
                    "since is one of those that are merged, and has no update from itself: say "
                    "what all of them started from, or leave it out"
                )
            return self

        @property
        def shares(self) -> list[float]:
            """w_i, the defaults put in."""
            return [1 / len(self.of)] * len(self.of) if self.weights is None else self.weights

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Write the merged adapter as a checkpoint; its one step is no optimizer's."""
        stage.sink.begin(1)
        if stage.resume is not None:
            done = stage.resume
            return Checkpoint(stage.base_model, done.state_uri, done.sampler_uri, done.step)
        if stage.adapters is None:
            raise PtlError(
                f"stage '{stage.name}' writes an adapter, and this engine takes none",
                hint="take 'engine: local'",
                code="engine-cannot",
            )
        like, updates = self._read(stage)
        found, metrics = self._merged(updates, stage.lora.rank, stage.seed)
        made = stage.adapters.write(checkpoint_name(stage.name), found, like, 1)
        stage.sink.log(metrics, 1)
        if (lost := metrics["merge/lost"]) > TOLD:
            ranks = sum(_rank(one) for one in updates)
            log.warning(
                "stage '%s': %.0f%% of the merged update's norm is beyond rank %d and is left out; "
                "'init_from: base' and 'lora: {rank: %d}' in this stage keep all of it",
                stage.name, 100 * lost, stage.lora.rank, ranks,
            )  # fmt: skip
        assert made.state_uri is not None
        assert made.sampler_uri is not None
        stage.sink.checkpoint(Resume(1, made.state_uri, made.sampler_uri))
        return made

    def _read(self, stage: StageContext) -> tuple[str, list[LoraUpdate | None]]:
        """The path of one of the adapters, and D_0, D_1, ..., D_n; None for a base model."""
        assert stage.adapters is not None
        config = self.config
        refs = [config.since, *config.of]
        found = [stage.resolve(ref).checkpoint if ref else None for ref in refs]
        paths = [one and (one.sampler_uri or one.state_uri) for one in found]
        for one in filter(None, found):
            if one.base_model != stage.base_model:
                raise UsageError(
                    f"stage '{stage.name}' merges adapters of {stage.base_model}, and one is of "
                    f"{one.base_model}",
                    code="wrong-data",
                )
        read = [stage.adapters.read(path) if path else None for path in paths]
        if len({frozenset(one.layers) for one in read if one}) > 1:
            raise UsageError(
                f"stage '{stage.name}' merges adapters that train different layers",
                hint="give their stages the same 'lora:' but for its rank",
                code="wrong-data",
            )
        like = next((path for path in paths if path), None)
        if like is None:
            raise UsageError(
                f"stage '{stage.name}' merges no adapter: all that 'of' names is a base model",
                code="wrong-data",
            )
        return like, read

    def _merged(
        self, updates: list[LoraUpdate | None], rank: int, seed: int
    ) -> tuple[LoraUpdate, dict[str, float]]:
        """The merged update with factors of this rank, and what is to be known of it."""
        known = next(one for one in updates if one)
        layers: dict[str, LoraFactorPair] = {}
        whole = lost = most = parts = 0.0
        rng = np.random.default_rng(seed)
        for name, shape in known.layers.items():
            own = [one.layers[name] if one else None for one in updates]
            counts = merging.coefficients(self.config.how, self.config.shares, own)
            merged = merging.total(own, counts) or LoraFactorPair(shape.a, 0 * shape.b)
            fitted = merging.fit(merged, rank, rng)
            layers[name] = fitted.pair
            parts += sum(
                count**2 * merging.inner(one, one)
                for count, one in zip(counts, own, strict=True)
                if one
            )
            whole, lost = whole + fitted.whole, lost + fitted.lost
            most = max(most, fitted.lost / fitted.whole if fitted.whole else 0.0)
        if whole <= NOTHING * parts:  # what is left is rounding, of which no share is lost
            log.warning(
                "the merged adapter changes nothing: with these weights its parts cancel each "
                "other, as those of one and the same adapter do"
            )
            lost = most = 0.0
        return LoraUpdate(known.base_model, layers), {
            "merge/norm": math.sqrt(max(0.0, whole - lost)),
            "merge/lost": math.sqrt(lost / whole) if whole else 0.0,
            "merge/lost_most": math.sqrt(most),
        }


def _rank(update: LoraUpdate | None) -> int:
    return next(iter(update.layers.values())).a.shape[0] if update else 0
