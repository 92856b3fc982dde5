"""The rollout loop: prompts -> groups of scored completions -> optimizer steps -> checkpoints.

The second of the two loops; `supervised` is the other. A batch of prompts (or episodes) is sampled
from a snapshot of the policy, every group in a thread of its own, which scores it as soon as it is
there. A method goes through the optimizer steps and, in each, through the groups that it learns
from, in their order, some while others are still sampled.

What a batch holds depends on the stage's seed, the number of the batch and the weights it was
sampled from, never on what ran when. With `max_staleness` s the weights are those after s batches
less than the policy has seen; at 0, the default, they are the policy itself. So a stage that was
killed goes on from a checkpoint to the result it would have had.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.options import Affects, Renamed
from posttrain_recipes.plugin import Resume, StageContext, Usage, checkpoint_name
from posttrain_recipes.records import Checkpoint, Record
from posttrain_recipes.training.loops import optimizer
from posttrain_recipes.training.loops.optimizer import OptimizerConfig, Saved, Saves, unchanged
from posttrain_recipes.training.loops.steps import PolicySnapshot, Step
from posttrain_recipes.training.loops.supervised import Order
from posttrain_recipes.training.requests import derive_seed
from posttrain_recipes.training.rl.metrics import batch_metrics, shown
from posttrain_recipes.training.rl.rollout import Group, Learner, Source
from posttrain_recipes.waiting import CancellableWaiter, Cancelled, in_thread

if TYPE_CHECKING:
    import tinker

    Rollout = Callable[[int, int, tinker.SamplingClient], list[Group]]

T = TypeVar("T")
CHUNKS = 4
"""A batch is trained on in this many parts, each as soon as it is there."""
KEEP_SAMPLERS_S = 7 * 24 * 3600
"""Seconds that the weights of older batches are kept: a resumed stage samples from them."""


class RolloutConfig(OptimizerConfig):
    """Options of every method that learns from what the policy does."""

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
    zero_variance_groups: Annotated[Literal["drop", "replace"], Renamed("flat_groups")] = "drop"
    """A group whose rewards are all the same: drop goes on without it (an advantage relative to the
    group is 0 there; reinforce_pp, relative to the batch, still learns of it), replace samples
    another prompt in its place (dynamic sampling, DAPO)."""
    max_replacements: int = Field(default=3, ge=1)
    """For zero_variance_groups: replace, how many other prompts are tried in one place."""
    retries: Annotated[int, Affects.COST] = Field(default=2, ge=0)
    """How often a group that could not be sampled is tried again before the stage fails; in an
    environment also how often an episode in which it raised is begun again, on its own."""
    show_every: Annotated[int | None, Affects.NOTHING] = Field(default=None, ge=1)
    """Steps between rollouts that are shown in MLflow; by default about eight times a stage."""

    @model_validator(mode="after")
    def _steps_come_out_even(self) -> RolloutConfig:
        if self.updates_per_batch > self.batch_size:
            raise ValueError(
                "updates_per_batch cannot be more than batch_size: a step needs a group"
            )
        if self.max_steps and self.max_steps % self.updates_per_batch:
            raise ValueError("max_steps has to be a multiple of updates_per_batch")
        if self.max_replacements != 3 and self.zero_variance_groups != "replace":
            raise ValueError("max_replacements is for zero_variance_groups: replace")
        return self

    def batches(self, groups: int) -> int:
        """How many batches of rollouts the stage takes, for `groups` groups in a pass."""
        whole = self.epochs * math.ceil(groups / self.batch_size)
        return min(whole, self.max_steps // self.updates_per_batch) if self.max_steps else whole

    @property
    def needs(self) -> tuple[str, ...]:
        """The optimizer's, and samplers that stay as they are where training overtakes them."""
        return (*super().needs, *(("sample:snapshot",) if self.max_staleness else ()))


@dataclass
class RolloutLoop:
    """Goes through the optimizer steps of a stage, from the first or from where it was resumed.

    As a context manager it begins the stage and, where that is interrupted, keeps what was trained.
    """

    stage: StageContext
    config: RolloutConfig
    source: Source
    rollout: Rollout
    """(index of a prompt, seed, sampler) -> its groups, scored; called in threads."""
    waiter: CancellableWaiter
    """What those threads wait with; it is cancelled at the end."""
    learner: Learner
    collect: Callable[[Sequence[Group]], Sequence[Record]] = lambda groups: ()
    """What the groups of a step leave for later stages."""
    trains_beside: Sequence[str] = ()
    """Further adapters that the method trains, by name."""
    beside: dict[str, tinker.TrainingClient] = field(default_factory=dict)
    """Their clients."""
    snapshots: dict[int, PolicySnapshot] = field(default_factory=dict)
    """By number of batches trained: those that are still to be sampled from."""
    running: dict[int, list[Future[list[Group]]]] = field(default_factory=dict)
    pending: deque[Step] = field(default_factory=deque)
    """Steps that were submitted and not logged yet."""

    def __enter__(self) -> RolloutLoop:
        """Begin the stage.

        Raises:
            UsageError: nothing to sample from.
        """
        stage, config = self.stage, self.config
        if not self.source.size:
            raise UsageError(f"stage '{stage.name}' has nothing to sample from", code="no-records")
        self.order = Order(range(self.source.size), config.batch_size, stage.seed, config.shuffle)
        self.batches = config.batches(self.source.size)
        self.total = self.batches * config.updates_per_batch
        self.last = stage.resume
        self.done = (self.last.step if self.last else 0) // config.updates_per_batch
        self.tokens = self.last.tokens if self.last else 0
        if config.exhausted(self.tokens):
            self.batches, self.total = self.done, self.done * config.updates_per_batch
        self.submitted = self.done * config.updates_per_batch
        self.launched = self.done
        self.finished = self.submitted, self.tokens
        self.saves = Saves(config)
        self.step: Step | None = None
        stage.sink.begin(self.total)
        self.client = stage.training_client()
        self.beside = {name: stage.training_client(name) for name in self.trains_beside}
        self.clock = time.monotonic()
        return self

    def __iter__(self) -> Iterator[Step]:
        """The optimizer steps in their order. Each is to be updated before the next is asked for.

        Raises:
            PtlError: the engine failed or is gone, or rollouts failed more often than is allowed.
        """
        if self.stage.sink.review():  # an earlier try was ended by its evals
            return
        self._known_snapshots(self.done)
        batch = self.done
        while batch < self.batches:
            self._launch(batch)
            for step in self._steps(batch):
                self.step = step
                yield step
            batch += 1
            if self.pending and self.pending[-1].due:
                self._drain()
                if self.stage.sink.review():
                    return
                self.clock = time.monotonic()  # an eval is no part of the speed of the next step
            self._snapshot(batch)
            self._launch(batch)
            self._drain()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Have the threads give up; an interrupted stage keeps the steps that were paid for."""
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                # Between two batches the weights are those of whole steps.
                saving = self.pending and self.pending[-1].saved
                kept = self.last.step if self.last else 0
                known = saving or self.submitted == kept or self._half_done
                last = None if known else self._save(self.submitted, self.tokens)
                self._drain()
                if last is not None:
                    self._keep(self._saved(last))
            elif kind is not None and issubclass(kind, Exception):
                self._keep_whole()
        finally:
            self.waiter.cancel()

    @property
    def checkpoint(self) -> Checkpoint:
        """The last step's."""
        assert self.last is not None
        state, sampler = self.last.state_uri, self.last.sampler_uri
        return Checkpoint(self.stage.base_model, state, sampler, self.last.step)

    def _keep_whole(self) -> None:
        """Save the batches before what failed, where nothing after them changed the weights: an
        engine that lives has them still."""
        with suppress(Exception):  # what failed fails again, at once
            self._drain()
        number, tokens = self.finished
        whole = not (number % self.config.updates_per_batch or self._half_done)
        if not whole or number == (self.last.step if self.last else 0):
            return
        changes = [one for step in self.pending for one in (step.optim, *step.beside)]
        if all(unchanged(self.stage, change) for change in changes):
            with suppress(PtlError):
                self._keep(self._saved(self._save(number, tokens)))

    @property
    def _half_done(self) -> bool:
        """Whether what is trained beside may have moved without the policy, or in a part of a
        batch: then only earlier checkpoints are of whole steps."""
        apart = self.submitted % self.config.updates_per_batch
        return bool(self.beside) and bool(apart or (self.step and self.step.half_done))

    # --- weights to sample from ------------------------------------------------------------------

    def _known_snapshots(self, done: int) -> None:
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
            self.snapshots[done - back] = PolicySnapshot(client, path)

    def _snapshot(self, trained: int) -> None:
        """Have the policy as it is after `trained` batches ready for sampling, without waiting."""
        if trained >= self.batches:
            return
        for old in [n for n in self.snapshots if n < trained - self.config.max_staleness]:
            del self.snapshots[old]
        client, service = self.client, self.stage.service
        if not self.config.max_staleness:
            snapshot = client.save_weights_and_get_sampling_client()
            self.snapshots[trained] = PolicySnapshot(in_thread(snapshot.result))
            return
        name = f"{checkpoint_name(self.stage.name)}-rollouts-{trained:06d}"
        saved = client.save_weights_for_sampler(name, ttl_seconds=KEEP_SAMPLERS_S)
        path = in_thread(lambda: saved.result().path)
        self.snapshots[trained] = PolicySnapshot(
            in_thread(lambda: service.create_sampling_client(model_path=path.result()).result()),
            path,
        )

    def _samplers(self, trained: int) -> tuple[str, ...]:
        """Where the policy of the batches before `trained` is kept, oldest first."""
        wanted = range(max(0, trained - self.config.max_staleness), trained)
        kept = [self.snapshots[n].path for n in wanted if n in self.snapshots]
        return tuple(self.stage.wait(path) for path in kept if path is not None)

    # --- rollouts --------------------------------------------------------------------------------

    def _launch(self, trained: int) -> None:
        """Start the rollouts of every batch that may be sampled once `trained` are trained on."""
        late = self.config.max_staleness
        while self.launched < self.batches and self.launched - late <= trained:
            batch = self.launched
            snapshot = self.snapshots[max(0, batch - late)]
            sampler: tinker.SamplingClient = self.stage.wait(snapshot.client)
            self.running[batch] = [
                in_thread(self._group(batch, place, index, sampler))
                for place, index in enumerate(self.order.batch(batch))
            ]
            self.launched += 1

    def _group(
        self, batch: int, place: int, index: int, sampler: tinker.SamplingClient
    ) -> Callable[[], list[Group]]:
        """The groups of one place in a batch; another prompt's, where the first has no variance."""
        config, seed = self.config, self.stage.seed

        def work() -> list[Group]:
            groups: list[Group] = []
            replace = config.zero_variance_groups == "replace"
            zero_variance = tried = thrown_away = 0
            for attempt in range(1 + config.max_replacements * replace):
                prompt = index
                if attempt:
                    stream = random.Random(f"{seed}:{batch}:{place}:{attempt}")
                    prompt = stream.randrange(self.source.size)
                    thrown_away += sum(g.written + g.counts["thrown_away"] for g in groups)
                groups = self._tried(prompt, derive_seed(seed, batch, place, attempt), sampler)
                tried += len(groups)
                zero_variance += sum(not (group.varies or group.lone) for group in groups)
                if any(group.varies for group in groups):
                    break
            groups[0].counts.update(
                zero_variance=zero_variance, tried=tried, replaced=attempt, thrown_away=thrown_away
            )
            return groups

        return work

    def _tried(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        for attempt in range(self.config.retries + 1):
            try:
                groups = self.rollout(index, seed, sampler)
            except (PtlError, Cancelled):
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

    def _steps(self, batch: int) -> Iterator[Step]:
        """The optimizer steps of a batch."""
        config, futures = self.config, self.running.pop(batch)
        compares = self.learner.compares_batch
        if config.updates_per_batch == 1 and not compares:
            parts = (self._ready(part) for part in _split(futures, CHUNKS))
            yield Step(len(futures) * self.source.seats, [], parts, self._update)
            return
        groups = self._ready(futures)
        self._check(groups)
        compared = groups if compares else []
        # Nothing is waited for from here on: an interrupt finds whole batches alone.
        shares: Iterator[Sequence[Group]] = _split(groups, config.updates_per_batch)
        for share in shares:
            even = math.ceil(len(groups) / config.updates_per_batch)
            size = even if compares else len(share)
            yield Step(size, compared, [list(share)], self._update)

    def _ready(self, futures: Sequence[Future[list[Group]]]) -> list[Group]:
        """Groups as they come, with what each of their tokens weighs in the loss."""
        parts: list[list[Group]] = [self.stage.wait(future) for future in futures]
        groups = [group for part in parts for group in part]
        self.learner.ready(self.client, groups, self.stage.wait)
        return groups

    def _update(self, step: Step) -> None:
        if self.config.updates_per_batch == 1:
            self._check(step.learned)
        step.learning_rate = optimizer.learning_rate(
            self.config, self.submitted, self.total, self.tokens
        )
        # Without a gradient Adam's momentum would move the policy all the same.
        if step.passes:
            step.optim = optimizer.update(self.client, self.config, step.learning_rate)
        self.submitted += 1
        step.number = self.submitted
        self._count(step)
        step.budgeted = self.tokens
        if self.submitted % self.config.updates_per_batch == 0:
            step.due = self.stage.sink.due(self.submitted)
            steps = range(self.submitted - self.config.updates_per_batch, self.submitted)
            if any(self.saves.due(n + 1, self.total, step.due) for n in steps):
                step.saved = self._save(self.submitted, self.tokens)
        self.pending.append(step)

    def _count(self, step: Step) -> None:
        """Take a step's tokens off the budget; the batch in which it ends is the last one."""
        items = [item for part, _ in step.passes for item in part]
        written = sum(group.written + group.counts["thrown_away"] for group in step.learned)
        train = sum(len(item.segment.tokens) for item in items) + step.extra.train
        usage = Usage(train=train, sample=written)
        self.tokens += self.config.counted(usage)
        batch, rest = divmod(self.submitted, self.config.updates_per_batch)
        if self.config.exhausted(self.tokens) and not rest:
            self.batches, self.total = batch, self.submitted
        if self.config.token_budget:
            steps = self.config.expected(self.submitted, self.total, self.tokens)
            self.stage.sink.begin(steps)

    def _save(self, step: int, tokens: int) -> Saved:
        return optimizer.save(self.stage, self.client, step, tokens, self.beside)

    def _check(self, groups: Sequence[Group]) -> None:
        if any(group.scored for group in groups):
            return
        why = next((group.error for group in groups if group.error), "")
        raise PtlError(
            f"no reply of a whole batch of stage '{self.stage.name}' has a reward",
            why=why or "every reward abstained: do the prompts have what it compares with?",
            hint="try the reward on one of the replies by hand",
            code="reward-failed",
        )

    # --- what it showed --------------------------------------------------------------------------

    def _drain(self) -> None:
        while self.pending:
            self._finish(self.pending[0])
            self.pending.popleft()

    def _finish(self, step: Step) -> None:
        stage = self.stage
        # All waiting first: an interrupt in between must not have half of the step logged.
        outputs: list[tinker.ForwardBackwardOutput] = [
            stage.wait(gradient) for _, gradient in step.passes
        ]
        updated = stage.wait(step.optim) if step.optim else None
        for other in step.beside:
            stage.wait(other)
        saved = self._saved(step.saved) if step.saved else None
        now, items = time.monotonic(), [item for part, _ in step.passes for item in part]
        tokens = sum(len(item.segment.tokens) for item in items) + step.extra.train
        metrics = {
            **batch_metrics(step.learned),
            "train/learning_rate": step.learning_rate,
            "train/tokens": float(tokens),
            "train/tokens_per_second": tokens / max(1e-9, now - self.clock),
            **self.learner.told(
                step.learned, items, [one for out in outputs for one in out.loss_fn_outputs]
            ),
        }
        if outputs or not step.beside:  # where a critic alone learned the policy has no loss
            metrics.setdefault("train/loss", sum(out.metrics["loss:sum"] for out in outputs))
        metrics.update(step.metrics)
        if self.config.max_staleness:
            batch = (step.number - 1) // self.config.updates_per_batch
            metrics["rollouts/staleness"] = float(min(batch, self.config.max_staleness))
        metrics.update(optimizer.norms(updated))
        self.clock = now
        if step.number > self.finished[0]:
            stage.sink.log(metrics, step.number)
            stage.watch(step.number, self.learner.watched(step.learned))
            self.finished = step.number, step.budgeted
            if left := self.collect(step.learned):
                stage.sink.collect(left)
        if self._shows(step.number):
            stage.sink.show("rollouts", shown(step.learned), step.number)
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
