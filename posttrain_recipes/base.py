"""What plugins of all kinds share, and rewards, which any of them may have. `plugin` has both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from posttrain_recipes.context import RewardContext
from posttrain_recipes.options import PluginConfig
from posttrain_recipes.records import Sample, StepMark


class Plugin(ABC):
    """What datasets, methods, rewards, evals, engines and trackers have in common.

    Its docstring is what `ptl explain` and the JSON Schema show; the first line is the summary.
    """

    name: ClassVar[str]
    """What a recipe says after `use:`."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that this plugin imports when it works and the base install lacks."""
    extra: ClassVar[str | None] = None
    """What to `pip install` for `requires`, as `posttrain-recipes[gsm]`."""
    same_tokenizer: ClassVar[tuple[str, ...]] = ()
    """Options whose `ModelRef` must have the tokenizer of the model that the stage trains."""
    other_tokenizer: ClassVar[str] = ""
    """What else a recipe may do where it has another one, as `or set 'align: spans'`."""

    class Config(PluginConfig):
        """No options."""

    config: PluginConfig
    origin: Mapping[str, Any] = {}
    """Where its code is from, and which weights its `ModelRef` options mean; the planner's."""
    rewards: Mapping[str, Reward] = {}
    """The rewards of its options that are a `RewardRef`, by option; the planner fills it."""

    def __init__(self, config: PluginConfig, base_dir: Path = Path()) -> None:
        """`base_dir` is the recipe's directory, which relative paths start from."""
        self.config = config
        self.base_dir = base_dir

    def reads_tokens(self) -> Sequence[str]:
        """Those of `same_tokenizer` that must have it with the options that it has."""
        return self.same_tokenizer

    def problems(self) -> Iterable[tuple[str, str]]:
        """What is wrong before anything runs, as `(option, message)`; cheap and offline."""
        return ()

    def digest(self) -> str | None:
        """A hash of what its options name and do not hold, such as a file's content.

        Stages are reused only while it stays the same. Cheap and offline; None where there is no
        such thing or, for a dataset, where it cannot be known.
        """
        return None

    def pin(self, *, ask: bool) -> str | None:
        """Fix what its options name and may change at any time, such as a branch on the hub.

        Called once, before `digest`, which is then of what was fixed; so is what is read later.

        Args:
            ask: whether the network may be used; otherwise only what this machine knows.

        Returns what `ptl plan` says of it, as `openai/gsm8k: revision 740312a`; None for nothing.
        """
        return None

    @property
    def needs(self) -> Sequence[str]:
        """What the engine must be able to do, as `ptl engines check` names it: `("loss:ppo",)`.

        A class attribute will do; a property where the options decide. A run on an engine that
        lacks any of it is refused before it starts.
        """
        return ()


class Reward(Plugin):
    """Scores replies."""

    reads_scores: ClassVar[tuple[str, ...]] = ()
    """Options whose `ModelRef` means a reward model: weights that score replies and write none."""

    @property
    def label(self) -> str:
        """What its metric is called, among the parts of a weighted sum."""
        return self.name

    @property
    def asks_model(self) -> bool:
        """Whether it asks a model, which takes tokens that nobody knows beforehand."""
        return type(self).open is not Reward.open

    def open(self, context: RewardContext) -> None:
        """Called once before the first `score`: rewards that ask a model get it here."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by whoever calls `score`, where calls must not overlap; by default there is none.

        A caller that stops waiting for a call that hangs lets go of it, so that others go on.
        """
        return nullcontext()

    def feedback(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        """What is to be said of each sample, in order, to whoever wrote it: which test failed, what
        is missing. Asked after `score`, of the same samples; None where there is nothing to say.

        `sdpo` shows it to the policy with its prompt. By default nothing is said.
        """
        return [None] * len(samples)

    @property
    def gives_feedback(self) -> bool:
        """Whether `feedback` says anything, with the options that it has."""
        return type(self).feedback is not Reward.feedback

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """One score for each sample, in order; None abstains.

        The samples are the replies to one prompt. Several threads may call this at once, where
        there is no `lock`.
        """

    def steps(self, samples: Sequence[Sample]) -> Sequence[Sequence[StepMark] | None]:
        """What each step of each sample is worth, in order: a process reward, which `grpo` credits
        to the tokens of the step and of those before it, in the place of `score`.

        By default a reward is of whole replies: None for each.
        """
        return [None for _ in samples]
