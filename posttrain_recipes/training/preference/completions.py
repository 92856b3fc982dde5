"""Training on log-probabilities of whole completions: what the preference methods share.

Their losses tie several replies together, and Tinker has none of them, so the client computes
them: a forward pass brings log p, the loss and its gradient by log p are taken here, and the
engine's backward pass takes that gradient as weights (`forward_backward_custom`). An uploaded loss,
which would need one pass, sees one datum at a time and so cannot compare two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from posttrain_recipes.plugin import (
    Checkpoint,
    Message,
    Preference,
    StageContext,
    Usage,
    WatchedReply,
)
from posttrain_recipes.training.loops import supervised
from posttrain_recipes.training.text.examples import (
    Example,
    datum,
    learned_whole,
    tokenize,
    usable,
    watched_example,
)

if TYPE_CHECKING:
    import tinker
    from torch import Tensor


@dataclass(frozen=True)
class Replies:
    """K replies that a loss looks at together, as tokens with weights on the reply."""

    index: int
    """The place of their record in the data."""
    examples: tuple[Example, ...]
    counted: tuple[list[float], ...] | None = None
    """What log p of each token (N,) of a reply counts in its sum, where that is not its weight."""

    @property
    def counts(self) -> list[list[float]]:
        """What log p of each token counts, from a reply's second token on."""
        return [own[1:] for own in self.counted or [e.weights for e in self.examples]]


@dataclass(frozen=True)
class Logps:
    """What the weights find of a batch of B times K replies, each tensor (B, K)."""

    policy: Tensor
    """log p of a reply, the sum over its tokens, in nats; the gradient flows through it."""
    reference: Tensor
    """The same by the weights that the stage started from; NaN for methods that need none."""
    lengths: Tensor
    """Tokens of a reply, the one that ends it included."""

    @property
    def mean(self) -> Tensor:
        """log p per token."""
        return self.policy / self.lengths

    @property
    def ratio(self) -> Tensor:
        """log p/p_ref."""
        return self.policy - self.reference


Metrics: TypeAlias = dict[str, float]
Loss: TypeAlias = "Callable[[Sequence[Replies], Logps], tuple[Tensor, Metrics]]"
"""The loss of a batch, a scalar, and what to log of it."""


def train(
    stage: StageContext,
    config: supervised.GradientConfig,
    items: Sequence[Replies],
    loss: Loss,
    *,
    reference: bool = False,
) -> Checkpoint:
    """Run the stage to its last step; `reference` says whether the loss reads `Logps.reference`."""
    return supervised.train(stage, config, items, CompletionObjective(stage, loss, reference))


def example(
    stage: StageContext,
    config: supervised.GradientConfig,
    prompt: Sequence[Message],
    reply: Sequence[Message],
    source: str,
) -> Example:
    """A reply to a prompt, weights 1 on the reply. Raises `UsageError` as `tokenize` does."""
    return tokenize(
        learned_whole(prompt, reply),
        stage.renderer,
        max_length=config.max_length,
        truncate=config.truncate,
        source=source,
    )


def pairs(stage: StageContext, config: supervised.GradientConfig) -> list[Replies]:
    """The stage's preferences as (chosen, rejected)."""

    def pair(numbered: tuple[int, Preference]) -> Replies:
        index, r = numbered
        return Replies(
            index,
            (
                example(stage, config, r.prompt, r.chosen, f"{r.source} (chosen)"),
                example(stage, config, r.prompt, r.rejected, f"{r.source} (rejected)"),
            ),
        )

    records = cast(Sequence[Preference], stage.train)
    return list(usable(pair, enumerate(records), truncate=config.truncate))


def pair_metrics(rewards: Tensor, logps: Tensor) -> Metrics:
    """What TRL logs of pairs, from rewards (B, 2) and log p (B, 2) of chosen and rejected."""
    chosen, rejected = rewards.detach().unbind(1)
    return {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": (chosen > rejected).float().mean().item(),
        "logps/chosen": logps.detach()[:, 0].mean().item(),
        "logps/rejected": logps.detach()[:, 1].mean().item(),
    }


class Reference:
    """log p of replies by the weights that the stage starts from, asked once for each record.

    It stays that checkpoint after a resume, whatever has been trained since.
    """

    def __init__(self, stage: StageContext) -> None:
        self.wait = stage.wait
        self.sampler = stage.sampling_client(stage.start)
        self.asked: dict[int, list[tinker.APIFuture[list[float | None]]]] = {}
        self.known: dict[int, list[float]] = {}
        self.by_token: dict[int, list[list[float | None]]] = {}
        """Of the first record of each batch, log p of each token from the second on: for people."""

    def ask(self, batch: Sequence[Replies]) -> None:
        """Submit what is not known yet, without waiting."""
        import tinker

        for item in batch:
            if item.index not in self.known and item.index not in self.asked:
                self.asked[item.index] = [
                    self.sampler.compute_logprobs(tinker.ModelInput.from_ints(e.tokens))
                    for e in item.examples
                ]

    def logps(self, item: Replies, shown: bool = False) -> list[float]:
        """log p of each of the item's replies, in nats. It has to have been asked.

        Args:
            shown: keep it by token, too.
        """
        if item.index not in self.known:
            found = [self.wait(future)[1:] for future in self.asked.pop(item.index)]
            self.known[item.index] = [
                sum(w * (logprob or 0.0) for w, logprob in zip(counts, own, strict=True))
                for counts, own in zip(item.counts, found, strict=True)
            ]
            if shown:
                self.by_token[item.index] = found
        return self.known[item.index]


class CompletionObjective:
    """A loss over whole replies, for the gradient loop."""

    def __init__(self, stage: StageContext, loss: Loss, reference: bool) -> None:
        self.loss = loss
        self.reference = Reference(stage) if reference else None

    def prepare(self, batch: Sequence[Replies]) -> None:
        if self.reference is not None:
            self.reference.ask(batch)

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Replies]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        import torch

        examples = [e for item in batch for e in item.examples]
        counts = [torch.tensor(own) for item in batch for own in item.counts]
        shape = (len(batch), -1)
        lengths = torch.tensor([e.learned for e in examples]).view(shape)
        if self.reference is None:
            reference = torch.full_like(lengths, float("nan"))
        else:
            known = [self.reference.logps(item, item is batch[0]) for item in batch]
            reference = torch.tensor(known)

        def loss(data: object, logprobs: list[Tensor]) -> tuple[Tensor, Metrics]:
            sums = [(logprob * own).sum() for own, logprob in zip(counts, logprobs, strict=True)]
            return self.loss(batch, Logps(torch.stack(sums).view(shape), reference, lengths))

        return client.forward_backward_custom([datum(e) for e in examples], loss)

    def metrics(
        self, batch: Sequence[Replies], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        return loss_metrics(output)

    def watched(
        self, batch: Sequence[Replies], output: tinker.ForwardBackwardOutput
    ) -> list[WatchedReply]:
        """The replies of one record, of which the reference is known by token where one is."""
        by_token = self.reference.by_token if self.reference is not None else {}
        place = next((i for i, item in enumerate(batch) if item.index in by_token), 0)
        item = batch[place]
        count = len(item.examples)
        labels = ("chosen", "rejected") if count == 2 else ("",) * count
        outputs = output.loss_fn_outputs[place * count : (place + 1) * count]
        references = by_token.get(item.index) or [[]] * count
        return [
            watched_example(example, found["logprobs"].data, reference, label)
            for example, found, reference, label in zip(
                item.examples, outputs, references, labels, strict=False
            )
            if "logprobs" in found
        ]

    def usage(self, batch: Sequence[Replies]) -> Usage:
        return Usage(train=sum(len(e.tokens) for item in batch for e in item.examples))


def loss_metrics(output: tinker.ForwardBackwardOutput) -> Mapping[str, float]:
    """The loss and what it logged; the engine's own metrics end in how they combine, as `:sum`."""
    ours = {name: value for name, value in output.metrics.items() if ":" not in name}
    return {"train/loss": output.metrics["loss:sum"], **ours}
