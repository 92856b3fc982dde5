"""Checks of what models make of text, before a run spends anything.

A tokenizer that loses text, files that differ on where a reply ends, replies that never learn to
end, and records that are too long. `ptl preflight` tokenizes all records; as a run starts, those
that may be too long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from posttrain_recipes.conversion import conversations
from posttrain_recipes.errors import PtlError, TooLongError, UsageError
from posttrain_recipes.options import RendererConfig
from posttrain_recipes.planning.data import load_records, open_records
from posttrain_recipes.planning.plans import Data, Plan, PlannedStage, model_location
from posttrain_recipes.plugin import Eval, Method, Plugin, Record, Rendered, Task
from posttrain_recipes.running import sampled
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.running.rendered import Renderers, renderers_of
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.training.text import model_files, soundness
from posttrain_recipes.training.text.chat_template import ChatRenderer
from posttrain_recipes.training.text.examples import NothingToLearn
from posttrain_recipes.training.text.rendered import of_record

FIRST = 16
"""Records whose text is looked at."""
MOST = 20_000
"""Records of one data set that are tokenized; of more, those with the most characters."""
_FRAME = 64
"""Tokens that a chat template may add to a message; a record that may be too long is tokenized."""

Load = Callable[[str, RendererConfig], ChatRenderer]


@dataclass(frozen=True)
class _Use:
    """Records, and who has a model read them."""

    name: str
    stage: PlannedStage
    user: Plugin
    data: Data
    wants: type[Record]
    renderer: RendererConfig


@dataclass
class Texts:
    """The checks of one plan.

    Args:
        load: (base model, options) -> its renderer. Raises `PtlError`.
        whole: tokenize all records and tell of each kind of fault; else only of those that are too
            long: what else is wrong with them is told when they are read.
    """

    plan: Plan
    load: Load
    whole: bool = True
    first: dict[str, list[list[int]]] = field(default_factory=dict)
    """By base model, the first records that it learns from or is asked, as token ids."""
    looked: list[str] = field(default_factory=list)
    """How much was looked at of data sets that are too large to be read before the first step."""
    broken: set[str] = field(default_factory=set)
    """Base models whose tokenizer loses text that is needed."""

    def of(self, stages: Sequence[PlannedStage]) -> Iterator[PreflightFinding]:
        """What is found about the plan's models, and about the data of these stages."""
        for model in self.plan.models if stages else ():
            yield from self._model(model)
        seen: set[str] = set()
        for stage in stages:
            for use in _uses(stage):
                key = f"{use.data.identity()} {use.wants.__name__} {stage.model} {use.renderer}"
                key += f" {use.user.name} {use.user.config}"
                if stage.model in self.broken:
                    continue  # what it makes of data tells no more
                if use.data.made_by or issubclass(use.wants, Task) or key in seen:
                    continue  # a stage that made records, or an episode, tells its own
                seen.add(key)
                yield from self._data(use)

    # --- the tokenizer ---------------------------------------------------------------------------

    def _model(self, model: str) -> Iterator[PreflightFinding]:
        name, location = f"tokenizer of {model}", model_location(model, self.plan.path.parent)
        try:
            renderer = self.load(model, self.plan.template_of(model))
        except PtlError as error:
            yield PreflightFinding.of(name, error)
            return
        lost = list(soundness.keeps(renderer.again, renderer.special.values()))
        needed = [one for one in lost if one.needed]
        told = "; ".join(one.what for one in lost)
        if needed:
            told = needed[0].what  # what is said of the others would be the same
            if others := [one.what.partition(":")[0] for one in needed[1:]]:
                told += f" (nor {', '.join(others)})"
            self.broken.add(model)
            yield PreflightFinding(
                name, "failed", f"the tokenizer of {location} does not keep {told}", _BROKEN
            )
        elif lost:
            yield PreflightFinding(
                name,
                "warning",
                f"the tokenizer of {location} does not keep {told}",
                "what data has of that, the model neither reads nor learns",
            )
        else:
            yield PreflightFinding(name, "ok", "keeps text: spaces, line breaks, digits, accents")
        yield self._ends(model, location, renderer)
        if layers := model_files.layers_left_out(location):
            held, named = layers
            yield PreflightFinding(
                f"weights of {model}",
                "warning",
                f"config.json of {location} names {named} layers, and its weights have {held}: the "
                "others are left out",
                "copy config.json from the model's origin again, unless that is meant",
            )

    def _ends(self, model: str, location: str, renderer: ChatRenderer) -> PreflightFinding:
        name = f"end of a reply of {model}"
        rows = renderer.rows
        if renderer.eos is not None and rows is not None and renderer.eos >= rows:
            return PreflightFinding(
                name,
                "failed",
                f"the tokenizer's eos_token {renderer.decode([renderer.eos])!r} is token "
                f"{renderer.eos}, and the model's embedding ends at {rows - 1} ({location})",
                "name a token that the model has as 'eos_token' of tokenizer_config.json",
            )
        if not renderer.stop:
            return PreflightFinding(
                name,
                "warning",
                f"no token ends a reply: neither the chat template nor the files of {location} "
                "name one, so that each goes on up to 'max_tokens'",
                "name one as 'eos_token' of tokenizer_config.json",
            )
        if odd := model_files.no_ends(location):
            file, named = next(iter(odd.items()))
            return PreflightFinding(
                name,
                "warning",
                f"{file} of {location} has 'eos_token_id': {json.dumps(named)[:60]}, which is no "
                "token id, nor a list of them",
                f"replies end at {_names(renderer)}; have it name the ids of tokens",
            )
        beyond = {
            file: [token for token in named if rows is not None and token >= rows]
            for file, named in model_files.ends_by_file(location).items()
        }
        if (lacks := next(((file, ids) for file, ids in beyond.items() if ids), None)) and rows:
            return PreflightFinding(
                name,
                "warning",
                f"{lacks[0]} of {location} names {', '.join(map(str, lacks[1]))} as the end of a "
                f"sequence, and the model's embedding ends at {rows - 1}: nothing ever ends there",
                "have it name tokens that the model has",
            )
        differ = soundness.ends_differ(
            renderer.eos, model_files.ends_by_file(location), lambda token: renderer.decode([token])
        )
        if differ:
            return PreflightFinding(
                name,
                "warning",
                f"the files of {location} differ on the token that ends a sequence: {differ}",
                f"replies end at any of {_names(renderer)}; have the files name the same",
            )
        return PreflightFinding(name, "ok", f"replies end at {_names(renderer)}")

    # --- data ------------------------------------------------------------------------------------

    def _data(self, use: _Use) -> Iterator[PreflightFinding]:
        try:
            renderers = renderers_of(self.plan, use.stage, self.load)
            renderer = renderers(None)
            read = open_records if getattr(use.user, "streams", False) else load_records
            records = read(use.data, use.wants)
        except PtlError:
            return  # told as the tokenizer's or the data's
        if isinstance(records, Streamed):
            if not self.whole:  # `ptl preflight` reads them to the end elsewhere
                skips, where = _skips(use), f"data of {use.name}"
                yield from sampled.look(where, use.data.label, records, skips, self.looked.append)
            head = list(records.tried(range(min(FIRST, len(records)))))
        else:
            head = list(records[:FIRST])
        if isinstance(use.user, Method):
            try:
                use.user.check(head if isinstance(records, Streamed) else records)
            except UsageError as error:
                yield PreflightFinding.of(f"records of {use.name}", error, f"{use.name}: ")
                return
        yield from _text(use, renderer, head)
        rendered: list[Rendered] = []
        for record in head:
            try:
                rendered += _rendered(use.user, record, renderers)
            except Exception:  # a plugin's own code, too
                continue  # told below, or when the records are read
        if rendered:
            sequences = self.first.setdefault(use.stage.model, [])
            sequences += [list(one.tokens) for one in rendered[: FIRST - len(sequences)]]
        yield from _ended(use, renderer, rendered)
        for text in sorted(renderer.told) if self.whole else ():  # a run logs them
            yield PreflightFinding(
                f"chat template of {use.name}",
                "warning",
                f"{use.stage.model}: {text}",
                "look at what is learned with 'ptl data show'",
            )
        yield from self._lengths(use, renderer, renderers, records)

    def _lengths(
        self, use: _Use, renderer: ChatRenderer, renderers: Renderers, records: Sequence[Record]
    ) -> Iterator[PreflightFinding]:
        name, count = f"length of {use.name}", f"{len(records):,} records"
        if isinstance(records, Streamed):
            places = sampled.longest(records, MOST if self.whole else sampled.LONGEST)
            records = list(records.tried(places))
            count = f"the {len(records):,} longest of {count}"
        elif len(records) > MOST:
            longest = sorted(range(len(records)), key=lambda i: -_bytes(records[i]))[:MOST]
            records = [records[i] for i in sorted(longest)]
            count = f"the {MOST:,} longest of {count}"
        bound, longest_tokens, left_out = _bound(use, renderer), 0, 0
        for record in records:
            if not self.whole and bound is not None and _short(record, bound):
                continue
            try:
                made = _rendered(use.user, record, renderers)
            except NothingToLearn:
                left_out += 1  # where the user truncates; told when it does
                continue
            except UsageError as error:
                if not (self.whole or isinstance(error, TooLongError)):
                    continue
                if _skips(use):
                    left_out += 1
                    continue
                yield _fault(name, record, error)
                return
            except Exception:  # a plugin's own code, which is only looked at here
                continue
            if over := _no_room(use, renderer, made):
                if _skips(use):
                    left_out += 1
                    continue
                yield _fault(name, record, over)
                return
            longest_tokens = max(longest_tokens, *(len(one.tokens) for one in made), 0)
        if left_out:
            text = f"{left_out:,} of {count} cannot be used, and are left out"
            yield PreflightFinding(name, "warning", text, "'ptl data show' shows what is read")
        elif self.whole:
            context = "" if renderer.context is None else f"; the model reads {renderer.context:,}"
            text = f"{count}, the longest of {longest_tokens:,} tokens{context}"
            yield PreflightFinding(name, "ok", text)


_BROKEN = (
    "its tokenizer.json is not what the model was trained with, or was converted wrongly: copy the "
    "tokenizer's files from the original model again"
)


def _uses(stage: PlannedStage) -> Iterator[_Use]:
    if stage.method is not None and stage.data is not None and stage.wants is not None:
        yield _Use(stage.name, stage, stage.method, stage.data, stage.wants, stage.renderer)
    for one in stage.evals:
        if not one.eval.takes:
            continue
        name = f"{stage.name}, eval {one.name}"
        yield _Use(name, stage, one.eval, one.data, one.wants, one.renderer)


def _skips(use: _Use) -> bool:
    return getattr(use.data.dataset.config, "bad_rows", "stop") == "skip"


def _rendered(user: Plugin, record: Record, renderers: Renderers) -> Sequence[Rendered]:
    """What models read of a record, by the code that trains on it."""
    hook = getattr(user, "rendered", None)
    made = hook(record, renderers) if hook else None
    return of_record(record, renderers(None), user.config) if made is None else made


def _text(use: _Use, renderer: ChatRenderer, head: Sequence[Record]) -> Iterator[PreflightFinding]:
    """Records whose text the tokenizer does not keep: the first, and how many."""
    name, faults = f"text of {use.name}", []
    for record in head:
        said = "\n".join(m.content for messages in conversations(record) for m in messages)
        lost = soundness.keeps_text(renderer.again, renderer.special.values(), said)
        if lost is not None:
            faults.append((lost, record.source or use.data.label))
    if faults:
        lost, source = min(faults, key=lambda fault: not fault[0].needed)
        yield PreflightFinding(
            name,
            "failed" if lost.needed else "warning",
            f"{source}: the tokenizer of {use.stage.model} loses a part of this text: {lost.what} "
            f"({len(faults)} of the first {len(head)} records)",
            _BROKEN if lost.needed else "the model neither reads nor learns what is lost",
        )


def _ended(
    use: _Use, renderer: ChatRenderer, rendered: Sequence[Rendered]
) -> Iterator[PreflightFinding]:
    """Replies whose last learned token stops no sampling."""
    if not isinstance(use.user, Method):
        return
    name = f"end of replies of {use.name}"
    for one in rendered:
        last = max((i for i, weight in enumerate(one.weights) if weight), default=None)
        if last is None or one.note:  # a prompt, or cut: it has no end
            continue
        if (token := one.tokens[last]) not in renderer.stop:
            yield PreflightFinding(
                name,
                "warning",
                f"the last token of a reply that is learned is {renderer.decode([token])!r}, which"
                f" does not end a reply when {use.stage.model} is sampled: it never learns "
                "to stop",
                "have the chat template write the end-of-sequence token after a reply, or name the "
                "token that it writes in generation_config.json",
            )
            return


def _fault(name: str, record: Record, error: UsageError) -> PreflightFinding:
    source = record.source or "a record"
    what = error.what.removeprefix("a record: ")
    what = what if what.startswith(source) else f"{source}: {what}"
    what += f" ({error.why})" if error.why else ""
    return PreflightFinding(name, "failed", what, error.hint)


def _no_room(use: _Use, renderer: ChatRenderer, made: Sequence[Rendered]) -> TooLongError | None:
    """What is wrong with a prompt that leaves no room for a reply of `max_tokens`: engines refuse
    it when it is sampled."""
    room, context = getattr(use.user.config, "max_tokens", None), renderer.context
    if not isinstance(room, int) or context is None:
        return None
    longest = max((len(one.tokens) for one in made if not one.weights), default=0)
    if longest + room <= context:
        return None
    return TooLongError(
        f"a prompt of {longest:,} tokens and a reply of max_tokens={room:,} are more than the "
        f"{context:,} that {use.stage.model} reads",
        hint=f"lower 'max_tokens' of {use.name}, or remove the record",
    )


def _bound(use: _Use, renderer: ChatRenderer) -> int | None:
    """Tokens that a record may have; None where only its own code tells."""
    if getattr(type(use.user), "rendered", None) not in (None, Method.rendered, Eval.rendered):
        return None
    config = use.user.config
    own = getattr(config, "max_length", None)
    if own is not None and getattr(config, "truncate", True):
        own = None
    room = getattr(config, "max_tokens", 0) or 0
    bounds = [bound for bound in (own, renderer.context) if bound is not None]
    if not bounds:
        return 1 << 62
    return min(bounds) - room - renderer.frame - _FRAME


def _short(record: Record, bound: int) -> bool:
    """Whether a record has no more tokens than `bound`, by its bytes: no token is less than one."""
    return _bytes(record) <= bound and not any(
        message.tools or message.tool_calls
        for messages in conversations(record)
        for message in messages
    )


def _bytes(record: Record) -> int:
    """Of the longest conversation of a record, with what a template may add to each message."""
    return max(
        (
            sum(
                len((m.content + m.reasoning).encode("utf-8", "replace")) + _FRAME for m in messages
            )
            for messages in conversations(record)
        ),
        default=0,
    )


def _names(renderer: ChatRenderer) -> str:
    there = (token for token in renderer.stop if renderer.rows is None or token < renderer.rows)
    return ", ".join(repr(renderer.decode([token])) for token in there)


def check(
    plan: Plan, stages: Sequence[PlannedStage], load: Load, warn: Callable[[str], None]
) -> Texts:
    """Look at these stages as a run starts; what was seen of their records.

    Raises:
        UsageError: a tokenizer that loses text, a record that is too long, or records that the
            method cannot train on.
    """
    texts = Texts(plan, load, whole=False)
    failed = []
    for finding in texts.of(stages):
        if finding.verdict == "failed":
            failed.append(finding)
        elif finding.verdict == "warning":
            warn("; ".join(filter(None, (f"{finding.check}: {finding.message}", finding.hint))))
    if failed:
        raise UsageError(
            "\n".join(dict.fromkeys(finding.message for finding in failed)),
            hint=failed[0].hint,
            code="preflight-failed",
        )
    return texts
