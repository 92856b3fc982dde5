"""The first records of a stage as the model will read them, for people to look at.

What is shown comes of the renderer and the code that training uses: the tokens here are the tokens
there. `ptl data show` prints it, and a run keeps a page of the first record with each stage.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import ModelRef, RendererConfig, asked
from posttrain_recipes.planning.plans import BASE, Plan, PlannedStage, model_location
from posttrain_recipes.plugin import DrivenTask, Message, Plugin, Record, Rendered, Renderer, Task
from posttrain_recipes.records import ROLES
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.shown import plain
from posttrain_recipes.store import RunRecord
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play
from posttrain_recipes.training.text.rendered import of_record

if TYPE_CHECKING:
    from posttrain_recipes.training.text.chat_template import ChatRenderer

SHOWN = 600
"""Tokens that are shown of one sequence: half of them of its beginning, half of its end."""
MANY_WEIGHTS = 3
"""Different weights of learned tokens up to which each is told."""
EPISODE_SECONDS = 10.0
"""That an environment may take to begin an episode that is only looked at."""
BEGIN, END = "where the assistant begins", "after the last reply"
"""Places of what a template adds, as `ChatRenderer.added` names them."""
_HEADERS = frozenset((*ROLES, "developer", "model", "human", "ipython", "start", "end", "turn"))
"""Words that a template says of who speaks."""

Renderers = Callable[[ModelRef | None], "ChatRenderer"]
"""The renderer of the weights that an option refers to; of None, the stage's own."""


@dataclass(frozen=True)
class Piece:
    """A part of a text that is learned, or special, or neither, as a whole."""

    text: str
    tokens: int
    learned: bool = False
    special: bool = False
    """Tokens that stand for no text of their own, shown by their names."""
    left_out: bool = False
    """Whether `text` says how much is not shown here."""


@dataclass(frozen=True)
class Added:
    """What the chat template writes that is not in the record."""

    where: str
    text: str
    remark: str = ""
    """What is worth knowing of it, as that it is a system prompt."""


@dataclass(frozen=True)
class View:
    """A sequence of tokens as a model reads it."""

    what: str
    """Which part of the record, or who reads it; empty where there is only one."""
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    """What each weighs in the loss; empty for a prompt."""
    pieces: tuple[Piece, ...]
    added: tuple[Added, ...]
    ends: tuple[str, ...]
    """Of a prompt: the tokens that end the reply to it."""
    notes: tuple[str, ...] = ()

    @property
    def learned(self) -> int:
        """Tokens that are learned; the first of a sequence is never predicted."""
        return sum(weight != 0 for weight in self.weights[1:])

    @property
    def weighs(self) -> str:
        """What the learned tokens weigh in the loss, where that is not 1 of each; else empty."""
        counts = Counter(weight for weight in self.weights[1:] if weight)
        if not counts.keys() - {1}:
            return ""
        if len(counts) > MANY_WEIGHTS:
            return f"weights from {min(counts):g} to {max(counts):g}"
        told = sorted(counts.items(), reverse=True)
        return ", ".join(f"{count:,} with weight {weight:g}" for weight, count in told)


@dataclass(frozen=True)
class SeenRecord:
    """A record with what models read of it."""

    source: str
    views: tuple[View, ...] = ()
    note: str = ""
    """Why there is nothing to see, or no more."""


@dataclass(frozen=True)
class StageShown:
    """The first records of a stage, or of an eval where the stage trains nothing."""

    stage: str
    use: str
    """The method, or the eval."""
    model: str
    data: str
    kind: str = ""
    """The type of its records."""
    count: int = 0
    """How many records there are."""
    records: tuple[SeenRecord, ...] = ()
    note: str = ""

    @property
    def same(self) -> object:
        """Equal for two stages that show the same."""
        return self.use, self.model, self.data, self.kind, self.count, self.records, self.note


# --- of a plan -----------------------------------------------------------------------------------


@dataclass
class Looker:
    """Shows the stages of a plan, without an engine."""

    plan: Plan
    runs: Sequence[RunRecord] = ()
    """Earlier runs, whose stages may have made what others read; the last one first of use."""
    runs_dir: Path = Path()
    _loaded: dict[tuple[str, str], ChatRenderer] = field(default_factory=dict)

    def stage(self, stage: PlannedStage, count: int, *, evals: bool = False) -> list[StageShown]:
        """The first `count` records of a stage, and of its evals where it trains nothing or with
        `evals`.

        Raises:
            PtlError: a tokenizer cannot be loaded, or data cannot be read.
        """
        sources = [(f"eval {e.name}", e.eval, e.data, e.wants) for e in stage.evals]
        if stage.method is not None and stage.data is not None and stage.wants is not None:
            trains = (stage.method.name, stage.method, stage.data, stage.wants)
            sources = [trains, *(sources if evals else [])]  # type: ignore[list-item]
        found = []
        for use, user, data, wants in sources:
            folders = {made: self._made(made) for made in data.made_by}
            missing = [made for made, folder in folders.items() if folder is None]
            head = StageShown(stage.name, use, stage.model, data.label, wants.__name__)
            if not user.takes:
                note = "the suite that it calls has data of its own: there is nothing to show"
                found.append(StageShown(**{**vars(head), "note": note}))
                continue
            if missing:
                note = (
                    f"stage '{missing[0]}' makes these records, and no run of it is kept: there "
                    f"is nothing to show yet; 'ptl run --until {missing[0]}' makes them"
                )
                found.append(StageShown(**{**vars(head), "note": note}))
                continue
            renderers = renderers_of(self.plan, stage, self._renderer)
            records = read_records(data, wants, renderers(None), partial(_known, folders), user)
            shown = tuple(of_one(user, one, renderers, play=True) for one in records[:count])
            found.append(StageShown(**{**vars(head), "count": len(records), "records": shown}))
        return found

    def _made(self, name: str) -> Path | None:
        """Where the last run of a stage left its records; None where there is none."""
        planned = next(stage for stage in self.plan.stages if stage.name == name)
        for run in reversed(self.runs):
            for kept in run.stages:
                if kept.fingerprint == planned.fingerprint and kept.done and kept.made_in:
                    return self.runs_dir / kept.made_in
        return None

    def _renderer(self, model: str, options: RendererConfig) -> ChatRenderer:
        from posttrain_recipes.training.text.chat_template import load_renderer

        key = model, options.model_dump_json()
        if key not in self._loaded:
            location = model_location(model, self.plan.path.parent)
            self._loaded[key] = load_renderer(location, options)
        return self._loaded[key]


def _known(folders: Mapping[str, Path | None], stage: str) -> Path:
    return folders[stage] or Path()


def renderers_of(
    plan: Plan, stage: PlannedStage, load: Callable[[str, RendererConfig], ChatRenderer]
) -> Renderers:
    """The renderers of a stage, each loaded by its base model and options."""
    models = {BASE: stage.model, **{s.name: s.model for s in plan.stages}}

    def of(ref: ModelRef | None) -> ChatRenderer:
        if ref is None:
            return load(stage.model, stage.renderer)
        # Which model a checkpoint is of, only an engine knows: the stage's own, most likely.
        model = ref.model or models.get(ref.stage or BASE, stage.model)
        return load(model, asked(ref.renderer, stage.renderer, same=model == stage.model))

    return of


def of_one(user: Plugin, record: Record, renderers: Renderers, *, play: bool = False) -> SeenRecord:
    """A record as `user`, a method or an eval, has models read it.

    Args:
        play: begin an episode of a task, for its first turn.
    """
    source = record.source or type(record).__name__
    try:
        if isinstance(record, Task):
            return _of_task(record, renderers(None), source, play)
        hook = getattr(user, "rendered", None)
        made = hook(record, renderers) if hook else None
        if made is None:
            made = of_record(record, renderers(None), user.config)
        views = tuple(view(one, renderers(None), user) for one in made)
        return SeenRecord(
            source, views, "" if views else f"a {type(record).__name__} cannot be shown"
        )
    except PtlError as error:
        return SeenRecord(source, note=f"cannot be used: {error.what}" + _in_brackets(error.why))
    except Exception as error:  # a plugin's own code: looking at a record ends no run
        return SeenRecord(source, note=f"cannot be shown: {type(error).__name__}: {error}")


def _of_task(task: Task, renderer: ChatRenderer, source: str, play: bool) -> SeenRecord:
    later = "what comes after it depends on what the model writes"
    if not play:
        return SeenRecord(
            source, note="an episode is played: 'ptl data show' begins one and shows it"
        )
    if isinstance(task, DrivenTask):
        return SeenRecord(source, note=f"the environment drives its episodes: {later}")
    episode = Play.of(task, renderer, EpisodeLimits(1, 1, 0.0, seconds=EPISODE_SECONDS))
    if episode.error:
        return SeenRecord(source, note=f"the environment cannot begin an episode: {episode.error}")
    if episode.turn is None:
        return SeenRecord(source, note="the episode is over as it begins: nothing is asked")
    seat = episode.turn.seat
    tokens = episode.prompt()
    messages = tuple(episode.players[seat].messages)
    what = f"the first turn, of seat {seat + 1} of {len(episode.players)}"
    one = Rendered(tokens, (), messages, what if len(episode.players) > 1 else "the first turn")
    return SeenRecord(
        source, (view(one, renderer),), f"before an episode no more is known: {later}"
    )


def _in_brackets(why: str | None) -> str:
    return f" ({why})" if why else ""


# --- of one sequence -----------------------------------------------------------------------------


def view(one: Rendered, renderer: Renderer, user: Plugin | None = None) -> View:
    """A sequence with what is special, learned and added in it."""
    special: Mapping[int, str] = getattr(renderer, "special", {})
    added, notes = _added(one, renderer, special, user)
    ends = () if one.weights else tuple(renderer.decode([token]) for token in renderer.stop)
    notes += [one.note] if one.note else []
    said = "\n".join(_texts(one.messages))
    notes += [
        f"{name!r} is text where the data have it, in ordinary tokens: not the token of that name"
        for name in special.values()
        if name.strip() and name in said
    ]
    pieces = tuple(_pieces(one, renderer, special))
    return View(one.what, tuple(one.tokens), tuple(one.weights), pieces, added, ends, tuple(notes))


def _texts(messages: Sequence[Message]) -> list[str]:
    return [text for message in messages for text in (message.content, message.reasoning)]


def _pieces(one: Rendered, renderer: Renderer, special: Mapping[int, str]) -> list[Piece]:
    """The text in parts. Each is decoded with all that stands before it, as tokenizers have it that
    a word at the very beginning is written otherwise."""
    tokens, count = list(one.tokens), len(one.tokens)
    learned = [weight != 0 for weight in one.weights] or [False] * count
    begin, end = (SHOWN // 2, count - SHOWN // 2) if count > SHOWN else (count, count)
    kinds = [(learned[i], token in special, begin <= i < end) for i, token in enumerate(tokens)]
    pieces, at, before = [], 0, ""
    for (is_learned, is_special, is_out), group in groupby(kinds):
        length = len(list(group))
        whole = renderer.decode(tokens[: at + length])
        begins = whole.startswith(before)
        text = whole[len(before) :] if begins else renderer.decode(tokens[at : at + length])
        pieces.append(Piece(text, length, is_learned, is_special, is_out))
        at, before = at + length, whole
    return _shortened(pieces)


def _shortened(pieces: Sequence[Piece]) -> list[Piece]:
    """Those in the middle as one that tells how many tokens they are."""
    kept: list[Piece] = []
    for out, group in groupby(pieces, key=lambda piece: piece.left_out):
        parts = list(group)
        if out:
            count = sum(part.tokens for part in parts)
            learned = sum(part.tokens for part in parts if part.learned)
            which = f", {learned:,} of them learned" if learned else ""
            parts = [Piece(f" [... {count:,} tokens left out{which} ...] ", count, left_out=True)]
        kept += parts
    return kept


def _added(
    one: Rendered, renderer: Renderer, special: Mapping[int, str], user: Plugin | None
) -> tuple[tuple[Added, ...], list[str]]:
    """What the template writes of its own, equal pieces once; and what cannot be told of it."""
    tell = getattr(renderer, "added", None)
    if tell is None or not one.messages:
        return (), []
    try:
        found = tell(one.messages, getattr(user.config, "train_on", "last") if user else "last")
    except PtlError as error:
        return (), [f"what the chat template adds cannot be told apart: {error.why or error.what}"]
    places: dict[str, list[str]] = {}
    if one.weights and one.weights[-1] and all(where != END for where, _ in found):
        found.append((END, renderer.decode(one.tokens[-1:])))  # the tokenizer's, not the template's
    for where, text in found:
        places.setdefault(text, []).append(where)
    has_system = one.messages[0].role == "system"
    told = []
    for text, wheres in places.items():
        more = f" and in {len(wheres) - 1} more places" if len(wheres) > 1 else ""
        remark = ""
        if wheres[0] == BEGIN:
            remark = "the generation prompt"
        elif wheres[0] == END and one.weights and one.weights[-1]:
            remark = "ends the reply, and is learned"
        elif wheres[0].endswith("(assistant)"):
            remark = "it ends in the generation prompt"
        if _says_something(text, special):
            first = text == found[0][1] and not has_system and "system" in text.casefold()
            words = "a system prompt that is not in the data" if first else "words not in the data"
            remark = f"{remark}, with {words}" if remark else words
        told.append(Added(wheres[0] + more, text, remark))
    return tuple(told), []


def _says_something(text: str, special: Mapping[int, str]) -> bool:
    """Whether there are words in it beside control tokens and who speaks."""
    for name in sorted(special.values(), key=len, reverse=True):
        text = text.replace(name, " ")
    words = "".join(letter if letter.isalnum() else " " for letter in text).split()
    return any(word.lower() not in _HEADERS for word in words)


# --- a page --------------------------------------------------------------------------------------


def page(user: Plugin, record: Record, renderers: Renderers) -> str:
    """A record as `user` has models read it, as a page of HTML; what cannot be shown is told."""
    one = of_one(user, record, renderers)
    parts = [f"<h3>{_escaped(one.source)}</h3>"]
    for seen in one.views:
        learned = f", {seen.learned:,} learned (marked)" if seen.weights else ""
        learned += _in_brackets(seen.weighs)
        what = f"{seen.what}: " if seen.what else ""
        parts.append(f"<p>{_escaped(what)}{len(seen.ids):,} tokens{learned}</p>")
        parts.append(f"<pre>{''.join(map(_markup, seen.pieces))}</pre>")
        told = [f"{a.where}: {a.text!r}" + _in_brackets(a.remark) for a in seen.added]
        parts += [f"<p>the chat template adds, {_escaped(text)}</p>" for text in told]
        parts += [f"<p>{_escaped(note)}</p>" for note in seen.notes]
    if one.note:
        parts.append(f"<p>{_escaped(one.note)}</p>")
    return _PAGE.format("\n".join(parts))


_PAGE = (
    "<!doctype html><meta charset='utf-8'><title>What the model reads</title>\n"
    "<style>pre{{white-space:pre-wrap}} mark{{background:#cfe8cf}} b{{color:#777}}</style>\n{}\n"
)


def _escaped(text: str) -> str:
    return html.escape(plain(text))


def _markup(piece: Piece) -> str:
    text = _escaped(piece.text)
    if piece.special or piece.left_out:
        text = f"<b>{text}</b>"
    return f"<mark>{text}</mark>" if piece.learned else text
