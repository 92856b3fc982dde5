"""Reward modelling (Bradley and Terry 1952; Stiennon et al. 2020, arXiv 2009.01325).

    loss = - log sigmoid(r(x, y+) - r(x, y-)) + centering * (r(x, y+) + r(x, y-))^2

averaged over the pairs of a batch. Papers put a scalar head on the model; Tinker trains adapters
alone, so r is the log-odds of two verdict tokens after one question about the reply,

    r(x, y) = log p(yes | x, y, question) - log p(no | x, y, question)

which is as real-valued and starts from what the model knows of good and bad. One forward pass gives
both tokens: the last position has two targets. The second term keeps the sum of a pair near 0
(Eisenstein et al. 2023, arXiv 2312.09244).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from posttrain_recipes.errors import TooLongError
from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Message,
    Method,
    ModelRef,
    Preference,
    Record,
    Rendered,
    Renderer,
    StageContext,
    Usage,
    Workload,
)
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.judges.verdicts import Judgement, judgement
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.preference import completions, losses

if TYPE_CHECKING:
    import tinker
    from torch import Tensor


@dataclass(frozen=True)
class Judged:
    """The question about each of two replies to one prompt."""

    chosen: Judgement
    rejected: Judgement


class RewardModel(Method):
    """Reward modelling: learn to score replies as the people did who preferred one of two.

    When: preferences that no rule can say, as a reward for the stages after it (reward:
    {use: reward_model, model: {stage: ...}}) or to choose among samples. When not: a rule can
    check the reply (use that), or the model itself should follow the preference at once (dpo).
    """

    name = "reward_model"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    writes = False
    needs = ("custom_loss", "targets:several")
    loss = "-log sigmoid(r(chosen) - r(rejected)), r = log p(yes) - log p(no) of a verdict"
    paper = "Stiennon et al. 2020, Learning to summarize from human feedback, arXiv 2009.01325"

    class Config(supervised.GradientConfig):
        """Options of reward modelling."""

        batch_size: int = Field(default=16, ge=1)
        """Pairs in one optimizer step."""
        centering: float = Field(default=0.0, ge=0)
        """Weight of keeping the rewards of a pair near 0 in sum, so that stages compare; TRL
        suggests 0.01."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Both replies with the question about them, with a pass before the one with a gradient."""
        pairs = [cast(Preference, record) for record in sample]
        lengths = [
            tokens(verdicts.question((*p.prompt, *reply)))
            for p in pairs
            for reply in (p.chosen, p.rejected)
        ]
        return token_counts.verdicts(self.config, lengths, count)

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The question about each side, after which the verdict is said."""
        pair, renderer = cast(Preference, record), renderers(None)
        note = (
            f"the reward is log p({verdicts.YES}) - log p({verdicts.NO}) of the token that follows"
        )
        return [
            Rendered(
                self._judged(pair, reply, which, renderer).prompt,
                messages=verdicts.question((*pair.prompt, *reply)),
                what=which,
                note=note,
            )
            for which, reply in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]

    def _judged(
        self, record: Preference, reply: Sequence[Message], which: str, renderer: Renderer
    ) -> Judgement:
        made = judgement((*record.prompt, *reply), renderer)
        if len(made.prompt) > self.config.max_length:
            raise TooLongError(
                f"{record.source} ({which}): {len(made.prompt)} tokens with the question are "
                f"more than max_length={self.config.max_length}",
                hint="raise 'max_length', or remove the record",
            )
        return made

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's preference pairs."""
        pairs = [
            Judged(
                self._judged(r, r.chosen, "chosen", stage.renderer),
                self._judged(r, r.rejected, "rejected", stage.renderer),
            )
            for r in cast(Sequence[Preference], stage.train)
        ]
        return supervised.train(stage, self.config, pairs, BradleyTerry(self.config))


class BradleyTerry:
    """The loss over pairs of verdicts, for the gradient loop."""

    def __init__(self, config: RewardModel.Config) -> None:
        self.config = config

    def prepare(self, batch: Sequence[Judged]) -> None:
        pass

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Judged]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        judgements = [one for pair in batch for one in (pair.chosen, pair.rejected)]

        def loss(data: object, logprobs: list[Tensor]) -> tuple[Tensor, completions.Metrics]:
            import torch

            rewards = torch.stack([logp[-1, 0] - logp[-1, 1] for logp in logprobs]).view(-1, 2)
            chosen, rejected = rewards.unbind(1)
            values = losses.bradley_terry(chosen, rejected)
            centred = self.config.centering * (chosen + rejected) ** 2
            found = rewards.detach()
            return (values + centred).mean(), {
                "accuracy": (found[:, 0] > found[:, 1]).float().mean().item(),
                "margin": (found[:, 0] - found[:, 1]).mean().item(),
                "mean_reward": found.mean().item(),
                "min_reward": found.min().item(),
                "max_reward": found.max().item(),
            }

        return client.forward_backward_custom([verdict_datum(one) for one in judgements], loss)

    def metrics(
        self, batch: Sequence[Judged], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        return completions.loss_metrics(output)

    def usage(self, batch: Sequence[Judged]) -> Usage:
        return Usage(
            train=sum(len(pair.chosen.prompt) + len(pair.rejected.prompt) for pair in batch)
        )


def verdict_datum(one: Judgement) -> tinker.Datum:
    """P inputs with two targets each (P, 2), of which the last, yes and no, count."""
    import tinker

    length = len(one.prompt)
    shape = [length, 2]
    targets = [0] * (2 * (length - 1)) + [one.yes, one.no]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(one.prompt),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=targets, dtype="int64", shape=shape),
            "weights": tinker.TensorData(data=[0.0] * (2 * length), dtype="float32", shape=shape),
        },
    )
