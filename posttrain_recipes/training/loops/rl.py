"""The rollout loop: groups in a fixed order -> rewards -> advantages -> optimizer steps.

The second of the two loops; `gradient` is the other. A batch of prompts (or episodes) is sampled
from a snapshot of the policy, every group in a thread of its own that scores it as soon as it is
there; on the way back the groups are trained on in their order, in part while others still run.

What a batch holds depends on the stage's seed, the number of the batch and the weights it was
sampled from, never on what ran when. With `max_staleness` s the weights are those after s batches
less than the policy has seen; at 0, the default, they are the policy itself. So a stage that was
killed goes on from a checkpoint to the result it would have had.
"""

from __future__ import annotations

import math
import random
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Method, Resume, StageContext, Usage
from posttrain_recipes.records import Checkpoint, Record
from posttrain_recipes.training.loops import optimizer
from posttrain_recipes.training.loops.optimizer import OptimizerConfig, Saved
from posttrain_recipes.training.loops.supervised import Order
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.metrics import batch_metrics, shown
from posttrain_recipes.training.rl.policy_loss import Item, PolicyConfig, PolicyGradient, drift
from posttrain_recipes.training.rl.rollout import Group, Source, derive
from posttrain_recipes.training.rl.scoring import Abandoned, Patience
from posttrain_recipes.training.rl.sources import ReplyConfig
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")
Passes = list[tuple[list[Item], "tinker.APIFuture[tinker.ForwardBackwardOutput]"]]
"""What was submitted to be learned from, with the future of its forward and backward pass."""
CHUNKS = 4
"""A batch is trained on in this many parts, each as soon as it is there."""
KEEP_SAMPLERS_S = 7 * 24 * 3600
"""Seconds that the weights of older batches are kept: a resumed stage samples from them."""


class RolloutConfig(PolicyConfig, OptimizerConfig):
    """Options of every method that learns from what the policy does."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of Adam. LoRA wants about ten times that of full fine-tuning."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to zero after the warm-up; constant keeps it."""
    batch_size: int = Field(default=16, ge=1)
    """Groups in one batch of rollouts."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data, each in an order of its own."""
    shuffle: bool = True
    """Draw that order by the seed; otherwise it is the data's, as a curriculum wants it."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer steps on a batch of rollouts, each on an equal share of its groups; from the second
    on the data are of a slightly older policy, which `loss: ppo` and the like bound."""
    max_staleness: int = Field(default=0, ge=0, le=16)
    """Batches that the sampling policy may lie behind: above 0, sampling and training overlap."""
    flat_groups: Literal["drop", "replace"] = "drop"
    """A group whose rewards are all the same teaches nothing: drop it, or sample another prompt in
    its place (dynamic sampling, DAPO)."""
    max_replacements: int = Field(default=3, ge=1)
    """For flat_groups: replace, how many other prompts are tried in one place."""
    retries: int = Field(default=2, ge=0)
    """How often a group that could not be sampled is tried again before the stage fails; in an
    environment also how often an episode in which it raised is begun again, on its own."""
    show_every: int | None = Field(default=None, ge=1)
    """Steps between rollouts that are shown in MLflow; by default about eight times a stage."""

    @model_validator(mode="after")
    def _steps_come_out_even(self) -> RolloutConfig:
        if self.updates_per_batch > self.batch_size:
            raise ValueError(
                "updates_per_batch cannot be more than batch_size: a step needs a group"
            )
        if self.max_steps and self.max_steps % self.updates_per_batch:
            raise ValueError("max_steps has to be a multiple of updates_per_batch")
        return self

    def batches(self, groups: int) -> int:
        """How many batches of rollouts the stage takes, for `groups` groups in a pass."""
        whole = self.epochs * math.ceil(groups / self.batch_size)
        return min(whole, self.max_steps // self.updates_per_batch) if self.max_steps else whole


class RolloutMethod(Method):
    """A method that learns from groups of what its policy does."""

    takes_reward: ClassVar[bool] = True
    same_tokenizer: ClassVar[tuple[str, ...]] = ("reference",)

    class Config(ReplyConfig, RolloutConfig):
        """Options of what is sampled, what it is worth and how it is learned from."""

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """Its loss, groups of samples, and log-probabilities where a reference reads them."""
        config = self.config
        loss = "custom_loss" if config.loss == "dro" else f"loss:{config.loss}"
        reference = config.reference is not None or config.kl_beta > 0
        return (
            loss,
            "sample:group",
            "sample:trained",
            *(("prompt_logprobs",) if reference else ()),
        )

    @abstractmethod
    def source(self, stage: StageContext, patience: Patience) -> Source:
        """Where the groups of a stage come from; its threads wait with `patience`."""

    def leaves(self, groups: Sequence[Group]) -> Sequence[Record]:
        """What the groups of a step leave for later stages to train on."""
        return ()

    def train(self, stage: StageContext) -> Checkpoint:
        """Run the stage to its last step."""
        patience = Patience()
        source = self.source(stage, patience)
        return train(stage, self.config, source, self.config.max_tokens, patience, self.leaves)


@dataclass
class _Update:
    """An optimizer step that was submitted."""

    number: int
    groups: list[Group]
    passes: Passes
    update: tinker.APIFuture[tinker.OptimStepResponse] | None
    learning_rate: float
    saved: Saved | None = None


@dataclass
class _Weights:
    """The policy after so many batches, to sample from."""

    client: Future[tinker.SamplingClient]
    path: Future[str] | None = None
    """Where it is kept, where a resumed stage may need it."""


def train(
    stage: StageContext,
    config: RolloutConfig,
    source: Source,
    max_tokens: int,
    patience: Patience,
    leaves: Callable[[Sequence[Group]], Sequence[Record]] = lambda groups: (),
) -> Checkpoint:
    """Run the stage to its last step and return that step's checkpoint.

    Args:
        source: where groups come from; its threads wait with `patience`.
        max_tokens: the longest reply, which a constant length normalization divides by.
        leaves: what the groups of a step leave for later stages.

    Raises:
        UsageError: nothing to sample from.
        PtlError: the engine failed or is gone, or rollouts failed more often than is allowed.
    """
    if not source.size:
        raise UsageError(f"stage '{stage.name}' has nothing to sample from")
    policy = PolicyGradient(config, max_tokens)
    return _Loop(stage, config, source, policy, patience, leaves).run()


@dataclass
class _Loop:
    stage: StageContext
    config: RolloutConfig
    source: Source
    policy: PolicyGradient
    patience: Patience
    leaves: Callable[[Sequence[Group]], Sequence[Record]]
    weights: dict[int, _Weights] = field(default_factory=dict)
    """By number of batches trained: those that are still to be sampled from."""
    running: dict[int, list[Future[list[Group]]]] = field(default_factory=dict)
    pending: deque[_Update] = field(default_factory=deque)

    def run(self) -> Checkpoint:
        stage, config = self.stage, self.config
        self.order = Order(range(self.source.size), config.batch_size, stage.seed, config.shuffle)
        self.batches = config.batches(self.source.size)
        self.total = self.batches * config.updates_per_batch
        self.seats = self.source.seats
        self.last = stage.resume
        done = (self.last.step if self.last else 0) // config.updates_per_batch
        self.tokens = self.last.tokens if self.last else 0
        if config.exhausted(self.tokens):
            self.batches, self.total = done, done * config.updates_per_batch
        self.submitted = done * config.updates_per_batch
        self.launched = done
        stage.sink.begin(self.total)
        self.client = stage.training_client()
        self.clock = time.monotonic()
        try:
            self._known_weights(done)
            batch = done
            while batch < self.batches:
                self._launch(batch)
                self._train(batch)
                batch += 1
                self._snapshot(batch)
                self._launch(batch)
                self._drain()
        except KeyboardInterrupt:
            # What was paid for is kept: between two batches the weights are those of whole steps.
            saving = self.pending and self.pending[-1].saved
            kept = self.last.step if self.last else 0
            last = None if saving or self.submitted == kept else self._save(self.submitted)
            self._drain()
            if last is not None:
                self._keep(self._saved(last))
            raise
        finally:
            self.patience.end()
        assert self.last is not None
        return Checkpoint(
            stage.base_model, self.last.state_uri, self.last.sampler_uri, self.last.step
        )

    # --- weights to sample from ------------------------------------------------------------------

    def _known_weights(self, done: int) -> None:
        """The weights that the first batches are sampled from."""
        resume = self.stage.resume
        older = list(resume.samplers if resume else ())
        uris = [*older, resume.sampler_uri if resume else self.stage.start.sampler_uri]
        for back, uri in enumerate(reversed(uris)):
            where = Checkpoint(self.stage.base_model, None, uri or None)
            client: Future[tinker.SamplingClient] = Future()
            client.set_result(self.stage.sampling_client(where))
            path: Future[str] = Future()
            path.set_result(uri or "")
            self.weights[done - back] = _Weights(client, path)

    def _snapshot(self, trained: int) -> None:
        """Have the policy as it is after `trained` batches ready for sampling, without waiting."""
        if trained >= self.batches:
            return
        for old in [n for n in self.weights if n < trained - self.config.max_staleness]:
            del self.weights[old]
        client, service = self.client, self.stage.service
        if not self.config.max_staleness:
            snapshot = client.save_weights_and_get_sampling_client()
            self.weights[trained] = _Weights(in_thread(snapshot.result))
            return
        name = f"{self.stage.name}-rollouts-{trained:06d}"
        saved = client.save_weights_for_sampler(name, ttl_seconds=KEEP_SAMPLERS_S)
        path = in_thread(lambda: saved.result().path)
        self.weights[trained] = _Weights(
            in_thread(lambda: service.create_sampling_client(model_path=path.result()).result()),
            path,
        )

    def _samplers(self, trained: int) -> tuple[str, ...]:
        """Where the policy of the batches before `trained` is kept, oldest first."""
        wanted = range(max(0, trained - self.config.max_staleness), trained)
        kept = [self.weights[n].path for n in wanted if n in self.weights]
        return tuple(self.stage.wait(path) for path in kept if path is not None)

    # --- rollouts --------------------------------------------------------------------------------

    def _launch(self, trained: int) -> None:
        """Start the rollouts of every batch that may be sampled once `trained` are trained on."""
        late = self.config.max_staleness
        while self.launched < self.batches and self.launched - late <= trained:
            batch = self.launched
            weights = self.weights[max(0, batch - late)]
            sampler: tinker.SamplingClient = self.stage.wait(weights.client)
            self.running[batch] = [
                in_thread(self._group(batch, place, index, sampler))
                for place, index in enumerate(self.order.batch(batch))
            ]
            self.launched += 1

    def _group(
        self, batch: int, place: int, index: int, sampler: tinker.SamplingClient
    ) -> Callable[[], list[Group]]:
        """The group at one place of a batch; another prompt's, where the first is flat."""
        config, seed = self.config, self.stage.seed

        def work() -> list[Group]:
            groups: list[Group] = []
            tries = 1 + (config.max_replacements if config.flat_groups == "replace" else 0)
            flat = thrown_away = 0
            for attempt in range(tries):
                where = index
                if attempt:
                    stream = random.Random(f"{seed}:{batch}:{place}:{attempt}")
                    where = stream.randrange(self.source.size)
                    thrown_away += sum(r.length for group in groups for r in group.rollouts)
                groups = self._tried(where, derive(seed, batch, place, attempt), sampler)
                if any(advantages.varies(group.rewards) for group in groups):
                    break
                flat += 1
            groups[0].counts.update(flat=flat, replaced=attempt, thrown_away=thrown_away)
            return groups

        return work

    def _tried(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        for attempt in range(self.config.retries + 1):
            try:
                groups = self.source.roll(index, seed, sampler)
            except (PtlError, Abandoned):
                raise
            except Exception as error:  # the engine's or the SDK's; the others go on meanwhile
                if attempt == self.config.retries:
                    raise PtlError(
                        f"a group of rollouts failed {attempt + 1} times",
                        why=f"{type(error).__name__}: {error}",
                        hint="'ptl run' of the same recipe goes on from the last checkpoint",
                    ) from error
            else:
                groups[0].counts["retried"] += attempt
                return groups
        raise AssertionError

    # --- training --------------------------------------------------------------------------------

    def _train(self, batch: int) -> None:
        """Submit the optimizer steps of a batch, each part as soon as its groups are there."""
        config = self.config
        futures = self.running.pop(batch)
        if config.updates_per_batch == 1 and self.policy.streams:
            groups: list[Group] = []
            passes: Passes = []
            for part in _split(futures, CHUNKS):
                there = self._there(part)
                self.policy.weigh(there, len(futures) * self.seats)
                groups += there
                passes += self._submit(there)
            self._check(groups)
            self._update(groups, passes)
            return
        groups = self._there(futures)
        self._check(groups)
        shares = list(_split(groups, config.updates_per_batch))
        if self.policy.streams:
            for share in shares:
                self.policy.weigh(share, len(share))
        else:
            self.policy.weigh(groups, math.ceil(len(groups) / config.updates_per_batch))
        # Nothing is waited for in between: an interrupt finds whole batches alone.
        for share in shares:
            self._update(list(share), self._submit(share))

    def _there(self, futures: Sequence[Future[list[Group]]]) -> list[Group]:
        groups: list[Group] = []
        for future in futures:
            groups += self.stage.wait(future)
        return groups

    def _submit(self, groups: Sequence[Group]) -> Passes:
        items, gradient = self.policy.submit(self.client, groups)
        return [] if gradient is None else [(items, gradient)]

    def _update(
        self,
        groups: list[Group],
        passes: Passes,
    ) -> None:
        step = self.submitted
        rate = optimizer.learning_rate(self.config, step, self.total, self.tokens)
        # Without a gradient Adam's momentum would move the policy all the same.
        submitted = optimizer.update(self.client, self.config, rate) if passes else None
        self.submitted += 1
        self._count(groups, passes)
        due = self.submitted % self.config.updates_per_batch == 0 and self._due()
        saved = self._save(self.submitted) if due else None
        self.pending.append(_Update(self.submitted, groups, passes, submitted, rate, saved))

    def _count(self, groups: Sequence[Group], passes: Passes) -> None:
        """Take a step's tokens off the budget; the batch in which it ends is the last one."""
        items = [item for part, _ in passes for item in part]
        written = sum(rollout.length for group in groups for rollout in group.rollouts)
        written += sum(group.counts["thrown_away"] for group in groups)
        usage = Usage(train=sum(len(item.segment.tokens) for item in items), sample=written)
        self.tokens += self.config.counted(usage)
        batch, rest = divmod(self.submitted, self.config.updates_per_batch)
        if self.config.exhausted(self.tokens) and not rest:
            self.batches, self.total = batch, self.submitted
        if self.config.token_budget:
            steps = self.config.expected(self.submitted, self.total, self.tokens)
            self.stage.sink.begin(steps)

    def _due(self) -> bool:
        """Whether a checkpoint is due at this end of a batch."""
        steps = range(self.submitted - self.config.updates_per_batch + 1, self.submitted + 1)
        return any(self.config.saves(step, self.total) for step in steps)

    def _save(self, step: int) -> Saved:
        return optimizer.save(self.stage, self.client, step, self.tokens)

    def _check(self, groups: Sequence[Group]) -> None:
        if any(group.scored for group in groups):
            return
        why = next((group.error for group in groups if group.error), "")
        raise PtlError(
            f"no reply of a whole batch of stage '{self.stage.name}' has a reward",
            why=why or "every reward abstained: do the prompts have what it compares with?",
            hint="try the reward on one of the replies by hand",
        )

    # --- what it showed --------------------------------------------------------------------------

    def _drain(self) -> None:
        while self.pending:
            self._finish(self.pending[0])
            self.pending.popleft()

    def _finish(self, update: _Update) -> None:
        stage = self.stage
        # All waiting first: an interrupt in between must not have half of the step logged.
        outputs = [stage.wait(gradient) for _, gradient in update.passes]
        updated = stage.wait(update.update) if update.update else None
        saved = self._saved(update.saved) if update.saved else None
        now = time.monotonic()
        items = [item for part, _ in update.passes for item in part]
        tokens = sum(len(item.segment.tokens) for item in items)
        metrics = {
            **batch_metrics(update.groups),
            "train/loss": sum(output.metrics["loss:sum"] for output in outputs),
            "train/learning_rate": update.learning_rate,
            "train/tokens": float(tokens),
            "train/tokens_per_second": tokens / max(1e-9, now - self.clock),
            **drift(items, [one for out in outputs for one in out.loss_fn_outputs], self.config),
        }
        if self.config.max_staleness:
            batch = (update.number - 1) // self.config.updates_per_batch
            metrics["rollouts/staleness"] = float(min(batch, self.config.max_staleness))
        metrics.update(optimizer.norms(updated))
        self.clock = now
        stage.sink.log(metrics, update.number)
        if left := self.leaves(update.groups):
            stage.sink.collect(left)
        if self._shows(update.number):
            stage.sink.show("rollouts", shown(update.groups), update.number)
        if saved is not None:
            self._keep(saved)

    def _shows(self, step: int) -> bool:
        every = self.config.show_every or max(1, self.total // 8)
        return step in (1, self.total) or step % every == 0

    def _saved(self, saved: Saved) -> Resume:
        batch = saved.step // self.config.updates_per_batch
        return replace(saved.result(self.stage), samplers=self._samplers(batch))

    def _keep(self, resume: Resume) -> None:
        self.last = resume
        self.stage.sink.checkpoint(resume)


def _split(items: Sequence[T], parts: int) -> Iterator[Sequence[T]]:
    """`items` in order, in `parts` parts of nearly the same size, some empty where few are left."""
    for part in range(parts):
        yield items[part * len(items) // parts : (part + 1) * len(items) // parts]
