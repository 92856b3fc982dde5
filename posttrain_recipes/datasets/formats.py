"""The forms that rows of data come in, and what record each of them is.

A form is told by its fields: `FORMATS` has one entry for each, the more specific first. A row
that is none of them, or whose values cannot be used, raises `RowError` with what to do about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from posttrain_recipes.datasets import rows
from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.messages import (
    FRAME,
    Row,
    did_you_mean,
    is_given,
    nearest,
    refuse_media,
    unused,
)
from posttrain_recipes.records import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
)

# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One form of row: the fields that tell it, and the record that it makes."""

    fields: tuple[str, ...]
    record: type[Record]
    make: Callable[[Row, str], Record]
    """(row, source) -> record; raises `RowError`."""
    known_as: str = ""
    optional: tuple[str, ...] = ()

    @property
    def common(self) -> bool:
        """Whether it is among those to name to a person who has none of them."""
        return self.record is not Labelled and ("chosen" not in self.fields or self.known_as == "")

    @cached_property
    def known(self) -> frozenset[str]:
        """All fields that it makes something of."""
        return frozenset({*self.fields, *self.optional, *FRAME})

    @property
    def name(self) -> str:
        """Its fields, as `prompt/completion`."""
        return "/".join(self.fields)


FORMATS: tuple[Format, ...] = (
    Format(("prompt", "chosen", "rejected"), Preference, rows.preference("prompt")),
    Format(("messages", "chosen", "rejected"), Preference, rows.preference("messages"), "HH"),
    Format(
        ("conversations", "chosen", "rejected"),
        Preference,
        rows.preference("conversations"),
        "ShareGPT",
    ),
    Format(("chosen", "rejected"), Preference, rows.whole_preference, "HH"),
    Format(("prompt", "completion", "label"), Labelled, rows.labelled("completion"), "KTO"),
    Format(("prompt", "response", "label"), Labelled, rows.labelled("response"), "KTO"),
    Format(("messages", "label"), Labelled, rows.labelled_conversation("messages"), "KTO"),
    Format(
        ("conversations", "label"), Labelled, rows.labelled_conversation("conversations"), "KTO"
    ),
    Format(("instruction", "output", "label"), Labelled, rows.labelled_alpaca, "KTO", ("input",)),
    Format(("messages",), Conversation, rows.conversation("messages")),
    Format(("conversations",), Conversation, rows.conversation("conversations"), "ShareGPT"),
    Format(("instruction", "output"), Conversation, rows.alpaca, "Alpaca", ("input",)),
    Format(("prompt", "completion"), Conversation, rows.pair("completion")),
    Format(("prompt", "response"), Conversation, rows.pair("response")),
    Format(("question", "answer"), Prompt, rows.prompt("question"), "GSM8K"),
    Format(("prompt", "answer"), Prompt, rows.prompt("prompt")),
    Format(("prompt",), Prompt, rows.prompt("prompt")),
)
"""Every form, the more specific before the less: the first whose fields a row has is the row's."""

FIELDS: tuple[str, ...] = tuple(
    dict.fromkeys(name for form in FORMATS for name in (*form.fields, *form.optional))
)
"""Every field that some form has."""

_ELSEWHERE = {
    "weight": "give its messages a 'weight', or repeat the row",
    "sample_weight": "give its messages a 'weight', or repeat the row",
    "chat_template": "set 'renderer: {chat_template: ...}' in the recipe",
    "chat_template_kwargs": "set 'renderer: {template_kwargs: ...}' in the recipe",
}
"""Fields that elsewhere change what is trained, and cannot be had in a row here."""


def recognise(row: Row) -> Format:
    """The form of a row.

    Raises:
        RowError: it is of none, or a misspelt field would make it another one.
    """
    for form in FORMATS:
        if all(name in row for name in form.fields):
            _reject_leftovers(form, row)
            return form
    raise _unknown(row)


def _reject_leftovers(form: Format, row: Row) -> None:
    """A row that falls back to a lesser form by a slip would lose data without a word. A name that
    is one of several with numbers (response_0, response_1) is no slip."""
    for here, gone in (("chosen", "rejected"), ("rejected", "chosen")):
        if here in row and gone not in row:
            raise RowError(f"has '{here}' but no '{gone}'; {did_you_mean(gone, row)}")
    stems = Counter(key.rstrip("0123456789") for key in row)
    numbered = {key for key in row if key[-1:].isdigit() and stems[key.rstrip("0123456789")] > 1}
    for fuller in FORMATS:
        extra = set(fuller.fields) - set(form.fields)
        if not set(form.fields) < set(fuller.fields) or len(extra) != 1:
            continue
        (name,) = extra
        others = [key for key in row if key not in FIELDS and key.lower() != f"{name}s"]
        others = [key for key in others if key not in numbered]
        near = nearest(name, others, cutoff=0.82)
        if near is not None:
            raise RowError(f"has '{near}'; did you mean '{name}'? rename it")


def _unknown(row: Row) -> RowError:
    def score(form: Format) -> tuple[float, int]:
        hits = [1.0 if n in row else 0.9 if nearest(n, row) else 0.0 for n in form.fields]
        return (sum(hits) / len(hits), len(hits))

    held = [] if any(name in row for name in FIELDS) else list(_held(row))
    if len(held) == 1:
        return RowError(
            f"is one object that holds rows; write them a line each: jq -c '{held[0]}[]'"
        )
    best = max(FORMATS, key=score)
    if score(best)[0] > 0:
        return missing(best, row)
    names = ", ".join(f"'{key}'" for key in list(row)[:8]) or "none"
    return RowError(
        f"is in no known form (its fields: {names}); say what they are, as "
        "'columns: {prompt: question, response: reply}' (in 'ptl data check' --columns "
        "prompt=question), or use " + ", ".join(form.name for form in FORMATS if form.common)
    )


def _held(row: Row, where: str = "") -> Iterator[str]:
    """Where in a row there are lists of objects, as jq writes it."""
    for key, value in row.items():
        if isinstance(value, Mapping) and not where:
            yield from _held(value, f".{key}")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            yield f"{where}.{key}"


def missing(form: Format, row: Row) -> RowError:
    """What to say of a row that should be of `form` and lacks some of its fields."""
    others = [key for key in row if key not in form.fields]
    otherwise = f"add it, or map one of these in columns: {', '.join(others[:8])}"
    return RowError(
        *(
            f"has no '{name}'; "
            + did_you_mean(
                name, others, "rename it, or map it in columns", otherwise if others else "add it"
            )
            for name in form.fields
            if name not in row
        )
    )


# --- a file of rows ------------------------------------------------------------------------------


@dataclass
class RowParser:
    """Rows of one file -> records; the first row that is recognised sets the form of the file."""

    name: str
    """How records name the file in their `source`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our field name -> the file's."""
    system: str | None = None
    """Put in front of records that have no system message of their own."""
    record: type[Record] | None = None
    """What the rows are, where that is known and need not be told by their fields."""
    text_only: bool = False
    """The file has no types, so that a label is the word true or false."""
    form: Format | None = field(default=None, init=False)
    unused: Counter[str] = field(default_factory=Counter, init=False)
    """Fields that nothing is made of -> the rows that have them; those of a message read
    `messages[].id`."""
    metadata: Counter[str] = field(default_factory=Counter, init=False)
    """Fields of prompts that rewards read -> the rows that have them; who imitates their answers
    does not."""
    _first_line: int = field(default=0, init=False)
    _fields: tuple[str, ...] = field(default=(), init=False)

    def parse(self, row: Row, line: int) -> Record:
        """The record of one row; raises `RowError`."""
        row = self._renamed(row)
        form = self._form(row, line)
        self._note_unused(row, form)
        record = form.make(row, f"{self.name}:{line}")
        return record if self.system is None else _with_system(record, self.system)

    def _form(self, row: Row, line: int) -> Format:
        expected = self.form
        if expected is not None and tuple(row) == self._fields:
            return expected  # the same fields are the same form
        if self.record is not None:
            fits = (f for f in FORMATS if f.record is self.record and set(f.fields) <= set(row))
            if (known := next(fits, None)) is not None:
                return known
        try:
            form = recognise(row)
        except RowError:
            if expected is None or all(name in row for name in expected.fields):
                raise
            raise missing(expected, row) from None
        if expected is None:
            self.form, self._first_line = form, line
        elif form is not expected:
            if set(form.fields) < set(expected.fields):
                raise missing(expected, row)
            raise RowError(
                f"is {form.name}, but the file is {expected.name} since line {self._first_line}; "
                "keep one form in a file"
            )
        self._fields = tuple(row)
        return form

    def _note_unused(self, row: Row, form: Format) -> None:
        """Count what nothing is made of; raise `RowError` for what would mean something."""
        for name, value in row.items():
            if name in form.known:
                if isinstance(value, list | tuple) and name != "tools":
                    for key in set(unused(value)):
                        self.unused[f"{name}[].{key}"] += 1
                continue
            refuse_media({name: value})
            if form.record is Prompt:
                self.metadata[str(name)] += 1
            elif is_given(value):
                if advice := _ELSEWHERE.get(name):
                    raise RowError(f"has '{name}', which a row cannot say here: {advice}")
                self.unused[str(name)] += 1

    def _renamed(self, row: Row) -> Row:
        if "kto_tag" in row and not {"label", "chosen"} & row.keys():  # LLaMA-Factory's name of it
            row = {"label" if key == "kto_tag" else key: value for key, value in row.items()}
        if not self.columns and not self.text_only:
            return row
        taken = set(self.columns.values())
        renamed = {key: value for key, value in row.items() if key not in taken}
        for ours, theirs in self.columns.items():
            if theirs in row:
                renamed[ours] = row[theirs]
            elif ours not in FRAME and not any(ours in form.optional for form in FORMATS):
                there = ", ".join(str(key) for key in row)
                raise RowError(
                    f"has no '{theirs}', which columns gives as '{ours}'; there is: {there}"
                )
        if self.text_only and isinstance(label := renamed.get("label"), str):
            renamed["label"] = {"true": True, "false": False}.get(label.strip().lower(), label)
        return renamed


def _with_system(record: Record, system: str) -> Record:
    front = (Message("system", system),)
    if isinstance(record, Conversation | Prompt) and record.messages[0].role != "system":
        return replace(record, messages=front + record.messages)
    if isinstance(record, Preference | Labelled) and record.prompt[0].role != "system":
        return replace(record, prompt=front + record.prompt)
    return record


def column_problems(columns: Mapping[str, str]) -> list[str]:
    """What is wrong with a `columns` mapping before any row is read."""
    problems = []
    for ours in columns:
        known = (*FIELDS, *FRAME)
        if ours not in known:
            near = nearest(ours, known)
            advice = f"did you mean '{near}'?" if near else f"there is: {', '.join(known)}"
            problems.append(f"unknown field '{ours}'; {advice}")
    return problems
