"""Writes `watch.jsonl` of each stage: what `ptl watch` shows. It fails no run, and slows none.

Of each step its metrics and what the run has spent by then; what evals found; a few replies with
what is known of their tokens; and the prompts of `watch:`, answered again (`film`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain_recipes.context import WatchedReply
from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.plugin import Checkpoint, Renderer
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.film import Film, words
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunDirectory, StageRecord
from posttrain_recipes.waiting import EngineLostError
from posttrain_recipes.watchlog import WatchLog, read, watch_path

REPLIES = 4
"""Replies of a step that are kept."""
TOKENS = 512
"""Tokens of one that are kept."""
ANSWER = 200
"""Characters of a reference answer that are kept."""


Pairs = Callable[[int | None, tuple[int, ...]], str]


class Watching(Reporter):
    """Writes what the stages of one run show."""

    def __init__(
        self,
        plan: Plan,
        directory: RunDirectory,
        serving: Serving,
        spending: Spending,
        made: Callable[[str], Path],
        warn: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.serving = serving
        self.spending = spending
        self.warn = warn
        self.film = Film(plan, serving, made)
        self._logs: dict[str, WatchLog] = {}

    def stage(self, stage: PlannedStage, kept: StageRecord) -> StageWatch:
        """What writes of a stage that trains."""
        return StageWatch(self, stage, kept, self.log(stage))

    def log(self, stage: PlannedStage) -> WatchLog:
        """The file of a stage."""
        if stage.name not in self._logs:
            path = watch_path(self.directory.path, stage.name)
            warn = self.warn
            self._logs[stage.name] = WatchLog(
                path, lambda text: warn(f"stage '{stage.name}': {text}")
            )
        return self._logs[stage.name]

    def cost(self) -> dict[str, Any]:
        """What the run has spent so far: tokens, seconds, and dollars where that is known."""
        usd = [kept.usd for kept in self.directory.record.stages if kept.usd is not None]
        spent = {"tokens": self.spending.tokens, "seconds": self.spending.seconds}
        return {**spent, "usd": sum(usd)} if usd else spent

    # --- events ----------------------------------------------------------------------------------

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        done = record.resume.step if record.resume else 0
        self.log(stage).add("state", status="started", done=done)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        kept = self.directory.record.stage(stage.name)
        steps = {"before": 0, "after": kept.total_steps}
        step = steps[when] if when in steps else int(when.rpartition(" ")[2])
        metrics = {}
        for name, found in r.metrics.items():
            label = report.metric_label(planned.name, planned.eval.name, name)
            values = {"value": found.value, "low": found.low, "high": found.high}
            share = name in report.SHARES
            metrics[label] = {**values, "count": found.count, "share": share}
        self.log(stage).add("eval", when=when, step=step, metrics=metrics, cost=self.cost())

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        self.log(stage).add("state", status="trained", done=record.total_steps)

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        log = self.log(stage)
        log.add("state", status=record.status, done=record.total_steps, cost=self.cost())
        log.close()


class StageWatch:
    """Writes of one stage that trains."""

    def __init__(
        self, watching: Watching, stage: PlannedStage, kept: StageRecord, log: WatchLog
    ) -> None:
        self._watching = watching
        self._stage = stage
        self._kept = kept
        self._log = log
        self._frames: set[int] = set()
        """Steps after which the prompts are still to be answered."""
        self._pairs: Pairs | None = None

    @property
    def _done(self) -> int:
        return self._kept.resume.step if self._kept.resume else 0

    def begin(self) -> None:
        """How many steps there will be is known: the start is answered, if it was not yet."""
        steps = self._watching.film.steps(self._stage, self._kept.total_steps)
        if not steps:
            return
        try:
            there = {line["step"] for line in read(self._log.path) if line["kind"] == "film"}
        except Exception:  # the log tells what is wrong with it
            return
        self._frames = {step for step in steps if step not in there and step >= self._done}
        if 0 in self._frames and self._kept.start is not None and not self._done:
            self._frame(0, self._kept.start)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step is done."""
        total = self._kept.total_steps
        more = {"total": total, "metrics": dict(metrics), "cost": self._watching.cost()}
        self._log.add("step", step / max(1, total), step=step, **more)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after step `step`, to be asked."""
        return step in self._frames and step < self._kept.total_steps

    def review(self) -> None:
        """Ask the last checkpoint, if that is due; nothing is under way now."""
        resume = self._kept.resume
        if resume is not None and self.due(resume.step):
            self._frame(resume.step, Checkpoint(self._stage.model, None, resume.sampler_uri))

    def end(self, last: Checkpoint) -> None:
        """Ask what the last step left."""
        if self._frames and self._kept.total_steps:
            self._frame(self._kept.total_steps, last)
        self._frames = set()

    def _frame(self, step: int, checkpoint: Checkpoint) -> None:
        watching, film = self._watching, self._watching.film
        self._frames.discard(step)
        try:
            found = film.prompts(self._stage)
            if not found.prompts:
                self._frames = set()
                return
            with watching.spending.into(self._stage, self._kept, self._kept.watching):
                samples = film.answers(self._stage, checkpoint)
        except EngineLostError:
            raise
        except Exception as error:
            self._frames = set()
            why = str(error).split("\n")[0]
            watching.warn(f"stage '{self._stage.name}': its prompts are not answered again: {why}")
            return
        self._log.add(
            "film",
            step=step,
            source=found.source,
            replies=[
                {
                    "prompt": words(one.prompt),
                    "answer": one.answer,
                    "reply": one.completion,
                    "right": found.right(one),
                    "cut": one.truncated,
                }
                for one in samples
            ],
        )

    def replies(self, step: int, replies: Sequence[WatchedReply]) -> None:
        """A few replies of a step, with what is known of their tokens. See `StageContext.watch`."""
        total = max(1, self._kept.total_steps)
        try:
            renderer = self._watching.serving.renderer(self._stage.model, self._stage.renderer)
            self._pairs = self._pairs or pairs(renderer)
            shown = [_shown(one, renderer, self._pairs) for one in replies[:REPLIES]]
        except Exception as error:  # a plugin's own may be anything
            self._log.add("refused", step=step, why=f"{type(error).__name__}: {error}")
            return
        of = {"of": len(replies)} if len(replies) > REPLIES else {}
        self._log.add("rollouts", step / total, step=step, rollouts=shown, **of)


def _shown(one: WatchedReply, renderer: Renderer, pair: Pairs) -> dict[str, Any]:
    """A reply as it is kept: at most `TOKENS` of its tokens, the first of them."""
    tokens = list(one.tokens[:TOKENS])
    for name, values in one.numbers.items():
        if len(values) != len(one.tokens):
            raise ValueError(f"{len(values)} numbers of '{name}' for {len(one.tokens)} tokens")
    texts = token_texts(tokens, pair)
    numbers = {name: [_number(v) for v in values[:TOKENS]] for name, values in one.numbers.items()}
    whole = "".join(texts)
    found: dict[str, Any] = {
        "prompt": renderer.decode(one.prompt),
        "length": len(one.tokens),
        "reward": one.reward,
        "advantage": one.advantage,
        "ended": one.ended,
        "label": one.label,
        "answer": one.answer[:ANSWER],
    }
    if redact(whole) != whole:  # no single token shows that it is a part of a secret
        return {**found, "secret": True, "tokens": [], "numbers": {}}
    return {**found, "tokens": texts, "numbers": numbers}


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def token_texts(tokens: Sequence[int], pair: Pairs) -> list[str]:
    """What each token adds to the text. Of a character that several make, the last one has it."""
    found: list[str] = []
    held: list[int] = []
    for place, token in enumerate(tokens):
        held.append(token)
        before = tokens[place - len(held)] if place >= len(held) else None
        text = pair(before, tuple(held))
        if text.endswith("\ufffd") and len(held) < 4 and place + 1 < len(tokens):
            found.append("")
            continue
        found.append(text)
        held = []
    return found


def pairs(renderer: Renderer) -> Pairs:
    """(a token, those after it) -> what these add to its text."""

    @lru_cache(maxsize=20_000)
    def text(before: int | None, tokens: tuple[int, ...]) -> str:
        # Beside the token before it: some tokenizers drop the space that begins a text.
        if before is not None:
            left, both = renderer.decode([before]), renderer.decode([before, *tokens])
            if both.startswith(left):
                return both[len(left) :]
        return renderer.decode(list(tokens))

    return text
