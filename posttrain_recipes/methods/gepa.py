"""GEPA: reflective prompt evolution (Agrawal et al. 2025, arXiv 2507.19457), by the package `gepa`.

A system prompt is evolved on a reward, and no weight is touched. At each turn one prompt of the
Pareto front is tried on a few of the data's prompts; somebody reads what came out, with what the
rewards said of it, and writes another prompt; that one is kept if it scores more on them.

What is left are the stage's prompts with the best system prompt before them: `prompt_distill` then
writes it into the weights. Of the data, a part is for `reflection`, a part chooses (`selection`),
and a part that neither sees (`test`) tells what was gained.

Not here: several components at once and the merge of two prompts, which the package has.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    DataMethod,
    EvalResult,
    FromData,
    Message,
    ModelRef,
    PerRecord,
    Prompt,
    PtlError,
    Record,
    Sample,
    ServedModel,
    StageContext,
    UsageError,
)
from posttrain_recipes.training.intervals import summary
from posttrain_recipes.training.judges.backends import Endpoint, EndpointJudge
from posttrain_recipes.training.judges.judge import Judge, ModelJudge
from posttrain_recipes.training.rl.failing import told_where_it_fails
from posttrain_recipes.training.rl.scoring import feedback_of
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text.instructions import instructed

log = logging.getLogger(__name__)
PART = "system"
"""What the package calls the component."""
ASKED = """\
An assistant reads these instructions before each request:

<instructions>
{instructions}
</instructions>

This is what came of some requests, and what was said of each reply:

{examples}

Write better instructions for the assistant, which would have made its replies better. Say nothing
else; write them between <instructions> and </instructions>."""


class GEPA(DataMethod):
    """Evolves a system prompt on a reward, by having a model read what went wrong.

    When: the model follows instructions, and nobody knows yet which; hundreds of scored replies are
    at hand, not thousands. When not: the model does not do what it is told (grpo, sft), or there is
    nothing to choose by but the prompt's author (prompt_distill alone).
    """

    name = "gepa"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    takes_reward: ClassVar[bool] = True
    requires = ("gepa",)
    extra = "posttrain-recipes[gepa]"
    needs = ("sample:group",)
    loss = "none: it evolves the system prompt s of y ~ p(. | s, x); log p is not touched"
    paper = "Agrawal et al. 2025, Reflective prompt evolution, arXiv 2507.19457"

    class Config(datagen.MakingConfig):
        """Options of evolving a prompt."""

        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest reply in tokens; one that is cut there is scored as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell."""

        system: str = Field(default="Answer the request.", min_length=1)
        """The instructions that it begins with."""
        calls: int = Field(default=400, ge=1)
        """Replies that may be scored, those of choosing included: the budget. The last turn may
        take some more."""
        selection: int = Field(default=32, ge=1)
        """Prompts that choose between instructions: the first ones of the data."""
        test: int = Field(default=64, ge=0)
        """Prompts that the result is measured on, before and after: the next ones. 0: it is not."""
        reflection: int = Field(default=3, ge=1)
        """Replies that are read at each turn, to the other prompts."""
        reflect: ModelRef | None = None
        """Who reads and writes; the stage's own start where not given."""
        endpoint: Endpoint | None = None
        """Somebody behind an OpenAI-compatible endpoint, in place of `reflect`."""
        reflect_tokens: int = Field(default=512, ge=1)
        """Longest instructions that are written."""
        question: str = ASKED
        """What is asked for, with {instructions} and {examples}. What stands between <instructions>
        and </instructions> of the answer is taken, or all of it."""
        proposals: list[str] = Field(default_factory=list)
        """Instructions to try in this order, in place of asking: where no model at hand can
        reflect."""

        @model_validator(mode="after")
        def _one_reflects(self) -> GEPA.Config:
            given = [self.reflect is not None, self.endpoint is not None, bool(self.proposals)]
            if sum(given) > 1:
                raise ValueError("give one of 'reflect', 'endpoint' and 'proposals'")
            if self.calls <= self.selection:
                raise ValueError(
                    f"{self.calls} 'calls' are spent once the first instructions were scored on "
                    f"the {self.selection} prompts of 'selection', so that no others are tried; "
                    "raise 'calls', or lower 'selection'"
                )
            if "{instructions}" not in self.question or "{examples}" not in self.question:
                raise ValueError("'question' has to have {instructions} and {examples} in it")
            return self

    config: Config

    def check(self, records: Sequence[Record]) -> None:
        """Prompts beyond those of `selection` and `test` are what is reflected on."""
        fixed = self.config.selection + self.config.test
        if len(records) <= fixed:
            raise UsageError(
                f"{len(records)} prompts leave none to reflect on",
                why=f"'selection' and 'test' take {fixed} of them",
                hint="lower those, or give more prompts",
                code="no-records",
            )

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Prompt]]:
        """One batch: every prompt under the best instructions."""
        stage.sink.begin(1)
        if skip:
            return
        prompts = cast(Sequence[Prompt], stage.train)
        config = self.config
        self.check(prompts)
        fixed = config.selection + config.test
        datagen.open_rewards(stage)
        program = InstructedModel(stage, config, prompts)
        choose = range(config.selection)
        test = range(config.selection, fixed)
        first = program.replies(config.system, choose)
        if all(reward is None for _, reward in first):
            raise PtlError(
                f"stage '{stage.name}': no reply to the prompts of 'selection' has a reward",
                why="every reward abstained: do the prompts have what it compares with?",
                hint="try the reward on one of the replies by hand",
                code="reward-failed",
            )
        program.asked = 0  # those are asked for again, and are known then
        begun = program.measured(config.system, test)
        best = evolved(program, config, stage.seed, range(fixed, len(prompts)), choose)
        if test:
            stage.sink.measured("instructions", "before", begun)
            stage.sink.measured("instructions", "after", program.measured(best.text, test))
        stage.sink.artifact("instructions.md", _told(best, config))
        stage.sink.log(
            {
                "gepa/candidates": best.candidates,
                "gepa/scored": program.asked,
                "reward_errors/abstained": sum(one is None for one in program.scored.values()),
                "gepa/selection_before": best.before,
                "gepa/selection_best": best.score,
                "data/kept": len(prompts),
            },
            1,
        )
        if best.text == config.system:
            log.warning(
                "stage '%s': nothing that was tried earned more on the prompts of 'selection' than "
                "the first instructions (%.3f), and those are left before the prompts; a reward "
                "that tells replies apart, other 'proposals' or more 'calls' may find better ones",
                stage.name,
                best.before,
            )
        stage.sink.note(f"instructions: {' '.join(best.text.split())}")
        yield [replace(one, messages=instructed(one.messages, best.text)) for one in prompts]


@dataclass(frozen=True)
class BestInstructions:
    """What was found."""

    text: str
    score: float
    """Mean reward on the prompts that choose."""
    before: float
    """The same of the instructions that it began with."""
    candidates: int


def evolved(
    program: InstructedModel,
    config: GEPA.Config,
    seed: int,
    reflect: Sequence[int],
    choose: Sequence[int],
) -> BestInstructions:
    """Evolve the instructions, by the package.

    Args:
        reflect: places of the prompts whose replies are read.
        choose: places of those that choose.
    """
    from gepa.api import optimize

    try:
        result: Any = optimize(
            seed_candidate={PART: config.system},
            trainset=list(reflect),
            valset=list(choose),
            adapter=cast(Any, program),
            reflection_minibatch_size=min(config.reflection, len(reflect)),
            max_metric_calls=config.calls,
            skip_perfect_score=False,
            logger=_Logger(),
            seed=seed,
        )
    except _Ended as ended:
        raise ended.error from None
    scores = result.val_aggregate_scores
    best = result.best_candidate
    text = best if isinstance(best, str) else best[PART]
    return BestInstructions(text, max(scores), scores[0], len(scores))


class _Ended(BaseException):
    """Ends the search. The package goes on after an `Exception` of its adapter, as if nothing had
    been written, until all calls are spent."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Ended(error) from error


class _Logger:
    """What the package says, in the run's own log."""

    def log(self, message: str) -> None:
        log.debug("%s", message)


@dataclass
class InstructedModel:
    """A model under instructions, as the package's adapter: see `gepa.core.adapter.GEPAAdapter`.

    A reply depends on the prompt, the instructions and the stage's seed alone, and is kept, so that
    a stage that was stopped pays for none twice. Its reward is not: that may be of a program that
    was mended, or of a model that was trained again.
    """

    stage: StageContext
    config: GEPA.Config
    prompts: Sequence[Prompt]
    asked: int = 0
    """Replies that were scored, those that were known included."""
    turns: int = 0
    """How often other instructions were asked for."""
    known: dict[str, datagen.Completion] = field(default_factory=dict)
    """By instructions and prompt: the reply."""
    scored: dict[str, float | None] = field(default_factory=dict)
    """By the same: its reward."""

    def __post_init__(self) -> None:
        self.model: ServedModel = datagen.served(self.stage, None)
        self.judge = self._judge()
        self.kept = self._file()
        if self.kept is not None and self.kept.exists():
            for line in self.kept.read_text(encoding="utf-8").splitlines():
                if (row := _row(line)) is not None:
                    self.known[row[0]] = row[1]

    def _judge(self) -> Judge:
        config, stage = self.config, self.stage
        if config.endpoint is not None:
            return EndpointJudge(config.endpoint, stage.wait, max_tokens=config.reflect_tokens)
        return ModelJudge(
            datagen.served(stage, config.reflect),
            stage.wait,
            max_tokens=config.reflect_tokens,
            seed=stage.seed,
        )

    def _file(self) -> Path | None:
        """Of this model's replies, under these options, to these prompts."""
        stage, config = self.stage, self.config
        if stage.cache is None:
            return None
        said = [
            self.model.identity or stage.start.sampler_uri or stage.base_model,
            f"{stage.seed} {config.max_tokens} {config.temperature}",
            *(repr(prompt.messages) for prompt in self.prompts),
        ]
        digest = hashlib.sha256("\n".join(said).encode()).hexdigest()[:20]
        return stage.cache / f"gepa-{digest}.jsonl"

    # --- the package's protocol -----------------------------------------------------------------

    def evaluate(
        self, batch: Sequence[int], candidate: Mapping[str, str], capture_traces: bool = False
    ) -> Any:
        """Replies to the prompts at these places, with their rewards."""
        from gepa.core.adapter import EvaluationBatch

        with _ending():
            scored = self.replies(candidate[PART], batch)
        return EvaluationBatch(
            outputs=[sample.completion for sample, _ in scored],
            scores=[reward or 0.0 for _, reward in scored],
            trajectories=scored if capture_traces else None,
        )

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, str]]]:
        """What was asked, replied and said of it."""
        scored: list[tuple[Sample, float | None]] = eval_batch.trajectories
        with _ending():
            said = self._feedback([sample for sample, _ in scored])
        rows = [
            {
                "Request": sample.prompt[-1].content,
                "Reply": sample.completion,
                "Feedback": _feedback(sample, reward, words),
            }
            for (sample, reward), words in zip(scored, said, strict=True)
        ]
        return dict.fromkeys(components_to_update, rows)

    def propose_new_texts(
        self,
        candidate: Mapping[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: Sequence[str],
    ) -> dict[str, str]:
        """Other instructions, by whoever reflects."""
        turn, self.turns = self.turns, self.turns + 1
        if self.config.proposals:
            text = self.config.proposals[turn % len(self.config.proposals)]
            return {PART: text}
        examples = "\n\n".join(
            "\n".join(f"{name}: {value}" for name, value in row.items())
            for row in reflective_dataset[PART]
        )
        question = self.config.question.replace("{instructions}", candidate[PART])
        question = question.replace("{examples}", examples)
        with _ending():
            [said] = self.judge.texts([(Message("user", question),)], turn + 1)
        if said is None:
            log.warning("stage '%s': who reflects gave no answer", self.stage.name)
        return {PART: _between(said or "") or candidate[PART]}

    # --- replies --------------------------------------------------------------------------------

    def replies(self, system: str, places: Sequence[int]) -> list[tuple[Sample, float | None]]:
        """A reply to each prompt under the instructions, with its reward; None: it abstained."""
        keys = [self._key(system, place) for place in places]
        if new := [p for p, key in zip(places, keys, strict=True) if key not in self.known]:
            self._ask(system, new)
        self.asked += len(places)
        samples = [
            self.known[key].sample(self.prompts[place])
            for key, place in zip(keys, places, strict=True)
        ]
        fresh = {key: one for key, one in zip(keys, samples, strict=True) if key not in self.scored}
        if fresh:
            rewards = datagen.totals(self.stage.rewards, list(fresh.values()))
            self.scored.update(zip(fresh, rewards, strict=True))
        return [(one, self.scored[key]) for key, one in zip(keys, samples, strict=True)]

    def measured(self, system: str, places: Sequence[int]) -> EvalResult:
        """The mean reward under the instructions, with its interval."""
        scored = self.replies(system, places) if places else []
        values = tuple(reward for _, reward in scored)
        known = [value for value in values if value is not None]
        metrics = {"mean_reward": summary(known)} if known else {}
        return EvalResult(
            metrics,
            tuple(sample for sample, _ in scored),
            higher_is_better={"mean_reward": True},
            scores={"mean_reward": PerRecord(values, abstained=True)} if known else {},
        )

    def _ask(self, system: str, places: Sequence[int]) -> None:
        config, stage = self.config, self.stage
        for group in datagen.batches(places, config.batch_size):
            futures = [
                datagen.ask(
                    self.model,
                    [instructed(self.prompts[place].messages, system)],
                    count=1,
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    seed=f"{stage.seed}:{place}",
                )[0]
                for place in group
            ]
            said = [
                replies[0] for replies in datagen.written(futures, self.model.renderer, stage.wait)
            ]
            rows = {self._key(system, place): one for place, one in zip(group, said, strict=True)}
            self.known |= rows
            if self.kept is not None:
                self.kept.parent.mkdir(parents=True, exist_ok=True)
                with self.kept.open("a", encoding="utf-8") as file:
                    file.writelines(
                        json.dumps([key, [one.text, one.truncated, one.raw]]) + "\n"
                        for key, one in rows.items()
                    )

    def _key(self, system: str, place: int) -> str:
        return hashlib.sha256(f"{place}\n{system}".encode()).hexdigest()[:24]

    def _feedback(self, samples: Sequence[Sample]) -> list[str]:
        """What the rewards have to say of each sample."""
        said: list[list[str]] = [[] for _ in samples]
        for reward, _ in self.stage.rewards:
            with told_where_it_fails(reward):
                texts = feedback_of(reward, reward.label, samples)
            for words, text in zip(said, texts, strict=True):
                words += [text] if text else []
        return [" ".join(words) for words in said]


def _feedback(sample: Sample, reward: float | None, said: str) -> str:
    score = "It was not scored." if reward is None else f"Its score is {reward:g}."
    answer = "" if sample.answer is None else f" A good reply is: {sample.answer}"
    return f"{score} {said}".strip() + (answer if not said else "")


def _between(text: str) -> str:
    """What stands between the marks, or all of it."""
    _, mark, rest = text.partition("<instructions>")
    inner = (rest if mark else text).partition("</instructions>")[0]
    return inner.strip()


def _row(line: str) -> tuple[str, datagen.Completion] | None:
    """A line of what was kept; None of one that was cut off."""
    try:
        key, (text, cut, raw) = json.loads(line)
    except (ValueError, TypeError):
        return None
    return str(key), datagen.Completion(str(text), bool(cut), str(raw))


def _told(best: BestInstructions, config: GEPA.Config) -> str:
    return (
        f"# Instructions\n\n{best.text}\n\n"
        f"Mean reward on {config.selection} prompts that chose among {best.candidates}: "
        f"{best.before:.3f} with the first, {best.score:.3f} with these.\n\n"
        f"It began with:\n\n{config.system}\n"
    )
