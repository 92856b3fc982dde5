"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306).

    loss = w (1 - sigmoid(beta * (r - z)))   for a desirable reply,
           w (1 - sigmoid(beta * (z - r)))   for an undesirable one,   r = log p(y|x)/p_ref(y|x)

averaged over the replies of a batch (equation 8; z here is the paper's z_0). As a person does, it
sees gains and losses from where it stands: z estimates KL(p || p_ref) as max(0, mean of r) over
mismatched replies, and takes no gradient. The mismatched reply of a record is that of another one,
of another prompt, drawn by the seed so that each reply is borrowed once, whatever the order of the
rows; TRL takes the one before it in its batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Family,
    Labelled,
    Method,
    Record,
    StageContext,
    Workload,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.preference import completions, losses
from posttrain_recipes.training.text.examples import usable

if TYPE_CHECKING:
    from torch import Tensor


class KTO(Method):
    """Kahneman-Tversky optimization: more of the replies called good, less of those called bad.

    When: replies with a verdict each, as thumbs up and down, that do not come in pairs or are far
    more often of one kind. When not: there are pairs of two replies to one prompt (dpo learns more
    from each), or only good replies (sft).
    """

    name = "kto"
    takes: ClassVar[tuple[type[Record], ...]] = (Labelled,)
    needs = ("custom_loss", "prompt_logprobs")
    family = Family.PREFERENCE
    loss = (
        "w * (1 - sigmoid(beta * (r - z))) if desirable, w * (1 - sigmoid(beta * (z - r))) if not; "
        "r = log p/p_ref, z = KL(p, p_ref)"
    )
    paper = "Ethayarajh et al. 2024, KTO: Prospect Theoretic Optimization, arXiv 2402.01306"

    class Config(supervised.GradientConfig):
        """Options of Kahneman-Tversky optimization."""

        batch_size: int = Field(default=32, ge=2)
        """Replies in one optimizer step, good and bad; z is a mean over as many mismatched ones."""
        beta: float = Field(default=0.1, gt=0)
        """Strength of the pull towards the reference; smaller moves further away from it."""
        desirable_weight: float = Field(default=1.0, ge=0)
        """Weight of the good replies; the paper wants weight times number of the good to be 1 to
        4/3 times that of the bad."""
        undesirable_weight: float = Field(default=1.0, ge=0)
        """Weight of the bad replies."""

    config: Config

    def digest(self) -> str:
        """How replies are mismatched: what was trained otherwise is not taken for this."""
        return "each reply borrowed once"

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """Each reply, and another's to the same prompt; both also under the reference."""
        records = [cast(Labelled, record) for record in sample]
        if len({record.prompt for record in records}) < 2:
            return None
        lengths = [
            tokens((*record.prompt, *other.completion))
            for record, place in zip(records, mismatched(records, 0), strict=True)
            for other in (record, records[place])
        ]
        return token_counts.replies(self.config, lengths, count, reference=True)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's labelled replies."""
        records = cast(Sequence[Labelled], stage.train)
        borrowed = mismatched(records, stage.seed)

        def item(numbered: tuple[int, Labelled]) -> completions.Replies:
            index, record = numbered
            other = records[borrowed[index]]
            sources = (record.source, f"{record.source} with the reply of {other.source}")
            # The other's reply stands here for the baseline alone, and may be cut for it.
            configs = (self.config, self.config.model_copy(update={"truncate": True}))
            return completions.Replies(
                index,
                tuple(
                    completions.example(stage, config, record.prompt, r.completion, source)
                    for config, r, source in zip(configs, (record, other), sources, strict=True)
                ),
            )

        def loss(
            batch: Sequence[completions.Replies], logps: completions.Logps
        ) -> tuple[Tensor, completions.Metrics]:
            return self._loss([records[item.index].label for item in batch], logps)

        items = usable(item, enumerate(records), truncate=self.config.truncate)
        return completions.train(stage, self.config, items, loss, reference=True)

    def _loss(
        self, labels: Sequence[bool], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        import torch

        config = self.config
        ratio, mismatch = logps.ratio.unbind(1)
        z = mismatch.detach().mean().clamp(min=0)
        good = torch.tensor(labels)
        weights = torch.where(good, config.desirable_weight, config.undesirable_weight)
        values = weights * losses.kto(ratio, good, z, config.beta)
        rewards, policy = config.beta * ratio.detach(), logps.policy.detach()[:, 0]
        metrics = {"kl": z.item()}
        for name, kind in (("chosen", good), ("rejected", ~good)):
            if kind.any():
                metrics[f"rewards/{name}"] = rewards[kind].mean().item()
                metrics[f"logps/{name}"] = policy[kind].mean().item()
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        # The SDK wants a gradient for every reply, and the mismatched ones have none.
        return values.mean() + 0.0 * mismatch.sum(), metrics


def mismatched(records: Sequence[Labelled], seed: int) -> list[int]:
    """For each record (R,) the place of one whose reply answers another prompt.

    Each reply is borrowed once, by a record that the seed draws, so that the baseline is a mean
    over all replies and does not depend on the order of the rows. Where one prompt has more than
    half of the records, its surplus borrows the others' replies in turn.

    Raises:
        UsageError: there is one prompt alone.
    """
    prompts: dict[object, list[int]] = {}
    for place, record in enumerate(records):
        prompts.setdefault(record.prompt, []).append(place)
    if len(prompts) < 2:
        raise UsageError(
            "kto needs replies to more than one prompt",
            why="its baseline is how likely replies to other prompts are",
            code="wrong-data",
        )

    def drawn(*parts: object) -> float:
        return random.Random(":".join(map(repr, (seed, *parts)))).random()

    blocks = sorted(prompts.items(), key=lambda item: drawn(item[0]))
    # Prompt by prompt, and moved on by the largest: whoever is met there answers another prompt.
    order = [
        place
        for _, places in blocks
        for place in sorted(places, key=lambda i: drawn(records[i].prompt, records[i].completion))
    ]
    step = max(map(len, prompts.values()))
    others = [order[(at + step) % len(order)] for at in range(len(order))]
    partner = dict(zip(order, others, strict=True))
    for prompt, places in prompts.items():
        surplus = [place for place in places if records[partner[place]].prompt == prompt]
        free = [place for place in order if records[place].prompt != prompt]
        for turn, place in enumerate(surplus):
            partner[place] = free[turn % len(free)]
    return [partner[place] for place in range(len(records))]
