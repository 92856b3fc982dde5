"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    loss = - log sigmoid(beta * h),   h = log p(y+|x)/p_ref(y+|x) - log p(y-|x)/p_ref(y-|x)

averaged over the pairs of a batch; `loss:` names others on the same margin h. The reference p_ref
is the checkpoint that the stage starts from. It stays that one after a resume: its
log-probabilities are asked of the start, never of the weights that are being trained.

Tinker has no such loss, so the client computes it: a forward pass brings log p, the loss and its
gradient by log p are taken here, and the engine's backward pass takes that gradient as weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, model_validator

from posttrain_recipes.plugin import Checkpoint, Method, Preference, Record, StageContext
from posttrain_recipes.training import gradient, losses
from posttrain_recipes.training.examples import Example, datum, tokenize

if TYPE_CHECKING:
    import tinker
    from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, as tokens with weights on the reply."""

    chosen: Example
    rejected: Example
    index: int


class DPO(Method):
    """Direct preference optimization: prefer the chosen reply over the rejected one.

    When: there are pairs of which people, or a judge, preferred one; after sft, whose checkpoint
    is the reference. When not: replies can be checked by a rule (reward them instead), or there
    are good examples but no bad ones (sft).
    """

    name = "dpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    loss = "-log sigmoid(beta * (log p/p_ref(chosen) - log p/p_ref(rejected)))"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290"

    class Config(gradient.GradientConfig):
        """Options of direct preference optimization."""

        batch_size: int = Field(default=16, ge=1)
        """Pairs in one optimizer step."""
        loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
        """On the margin h: sigmoid is DPO; ipo does not push h without end (its h is of means over
        tokens, so its margins are small); hinge stops at 1/beta; robust expects flipped labels."""
        beta: float = Field(default=0.1, gt=0)
        """Strength of the pull towards the reference; smaller moves further away from it."""
        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """Share of pairs whose labels are taken to be wrong; for the losses sigmoid and robust."""

        @model_validator(mode="after")
        def _smoothing_has_a_loss(self) -> DPO.Config:
            if self.label_smoothing and self.loss in ("ipo", "hinge"):
                raise ValueError(f"label_smoothing means nothing to loss '{self.loss}'; remove it")
            return self

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's preference pairs."""

        def example(record: Preference, reply: str) -> Example:
            return tokenize(
                (*record.prompt, *getattr(record, reply)),
                stage.renderer,
                max_length=self.config.max_length,
                truncate=self.config.truncate,
                source=f"{record.source} ({reply})",
            )

        pairs = [
            Pair(example(record, "chosen"), example(record, "rejected"), index)
            for index, record in enumerate(cast(Sequence[Preference], stage.train))
        ]
        return gradient.train(stage, self.config, pairs, _Preference(stage, self.config))


class _Preference:
    def __init__(self, stage: StageContext, config: DPO.Config) -> None:
        self.config = config
        self.wait = stage.wait
        self.reference = stage.sampling_client(stage.start)
        self.asked: dict[int, list[tinker.APIFuture[list[float | None]]]] = {}
        self.known: dict[int, tuple[float, float]] = {}

    def prepare(self, batch: Sequence[Pair]) -> None:
        import tinker

        for pair in batch:
            if pair.index not in self.known and pair.index not in self.asked:
                self.asked[pair.index] = [
                    self.reference.compute_logprobs(tinker.ModelInput.from_ints(e.tokens))
                    for e in (pair.chosen, pair.rejected)
                ]

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Pair]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        import torch

        reference = torch.tensor([self._reference(pair) for pair in batch])
        examples = [e for pair in batch for e in (pair.chosen, pair.rejected)]
        learned = torch.tensor([e.learned for e in examples]).view(-1, 2)

        def loss(data: object, logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
            policy = torch.stack(
                [
                    (logprob * torch.tensor(e.weights[1:])).sum()
                    for e, logprob in zip(examples, logprobs, strict=True)
                ]
            ).view(-1, 2)
            ratio = policy - reference
            values = self._loss(ratio / learned if self.config.loss == "ipo" else ratio)
            return values.mean(), self._metrics(ratio.detach(), policy.detach())

        return client.forward_backward_custom([datum(e) for e in examples], loss)

    def _loss(self, ratio: Tensor) -> Tensor:
        """One value a pair (B,) from log p/p_ref of chosen and rejected (B, 2)."""
        h, config = ratio[:, 0] - ratio[:, 1], self.config
        if config.loss == "ipo":
            return losses.dpo_ipo(h, config.beta)
        if config.loss == "hinge":
            return losses.dpo_hinge(h, config.beta)
        if config.loss == "robust":
            return losses.dpo_robust(h, config.beta, config.label_smoothing)
        return losses.dpo_sigmoid(h, config.beta, config.label_smoothing)

    def _reference(self, pair: Pair) -> tuple[float, float]:
        """log p_ref of both replies, in nats."""
        if pair.index not in self.known:
            chosen, rejected = (
                sum(
                    weight * (logprob or 0.0)
                    for weight, logprob in zip(e.weights[1:], self.wait(f)[1:], strict=True)
                )
                for e, f in zip((pair.chosen, pair.rejected), self.asked[pair.index], strict=True)
            )
            self.known[pair.index] = (chosen, rejected)
            del self.asked[pair.index]
        return self.known[pair.index]

    def _metrics(self, ratio: Tensor, policy: Tensor) -> dict[str, float]:
        """TRL's names; rewards are the implicit ones, beta * log p/p_ref."""
        chosen, rejected = (self.config.beta * ratio).unbind(1)
        return {
            "rewards/chosen": chosen.mean().item(),
            "rewards/rejected": rejected.mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "rewards/accuracies": (chosen > rejected).float().mean().item(),
            "logps/chosen": policy[:, 0].mean().item(),
            "logps/rejected": policy[:, 1].mean().item(),
        }

    def metrics(
        self, batch: Sequence[Pair], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        ours = {k: v for k, v in output.metrics.items() if k.startswith(("rewards/", "logps/"))}
        return {"train/loss": output.metrics["loss:sum"], **ours}

    def tokens(self, batch: Sequence[Pair]) -> int:
        return sum(len(pair.chosen.tokens) + len(pair.rejected.tokens) for pair in batch)
