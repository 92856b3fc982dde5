"""The records of a stage or an eval, looked at with the model's chat template before they are used.

What a template cannot show is told with the file and the line, all of it at once; or left out,
where the data set says `bad_rows: skip`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain_recipes.conversion import conversations
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.data import load_records, open_records
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.plugin import Plugin
from posttrain_recipes.records import (
    Prompt,
    Record,
)
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.training.text.chat_template import ChatRenderer

log = logging.getLogger(__name__)
_TOLD = 10
"""Records that are named; the others are only counted."""


def read_records(
    data: Data,
    wants: type[Record],
    renderer: ChatRenderer,
    made: Callable[[str], Path],
    user: Plugin,
) -> Sequence[Record]:
    """The records of `data` as `wants`, those left out that cannot be used and may be.

    For a method that can do with that, too many to be held are a `Streamed`: they are looked at as
    they are asked for.

    Args:
        made: (stage) -> the directory of what that earlier stage made.
        user: the method or the eval that they are for; its bounds on length count.

    Raises:
        UsageError: data that cannot be read, or records that the template cannot show.
    """
    read = open_records if getattr(user, "streams", False) else load_records
    records = read(data, wants, made)
    if isinstance(records, Streamed):
        return records
    skips = getattr(data.dataset.config, "bad_rows", "stop") == "skip"
    kept, faults = [], []
    for record in records:
        fault = _fault(record, renderer, user, skips)
        if fault is None:
            kept.append(record)
        else:
            faults.append(f"{record.source or 'a record'}: {fault}")
    if not faults:
        return records
    shown = "\n  ".join(faults[:_TOLD]) + ("\n  ..." if len(faults) > _TOLD else "")
    if skips and kept:
        count = f"{len(faults)} of {len(records)} records cannot be used and were left out"
        log.warning("%s: %s:\n  %s", data.label, count, shown)
        return kept
    raise UsageError(
        f"{len(faults)} of {len(records)} records of {data.label} cannot be used:\n  {shown}",
        hint="mend or remove them"
        + ("" if skips else ", or leave them out with 'bad_rows: skip' of the data set"),
        code="bad-row",
    )


def _fault(record: Record, renderer: ChatRenderer, user: Plugin, skips: bool) -> str | None:
    try:
        if isinstance(record, Prompt):
            if skips:
                return _too_long(len(renderer.prompt(record.messages)), user)
            renderer.check(record.messages)
        elif skips:  # else the methods tell: they make the same tokens
            train_on = getattr(user.config, "train_on", "last")
            lengths = [len(renderer.supervised(one, train_on)[0]) for one in conversations(record)]
            return _too_long(max(lengths, default=0), user)
    except UsageError as error:
        return error.what + (f" ({error.why})" if error.why else "")
    return None


def _too_long(tokens: int, user: Plugin) -> str | None:
    """What is wrong where the tokens, and a reply to them, are more than the user takes."""
    bound = getattr(user.config, "max_length", None)
    if bound is None or getattr(user.config, "truncate", True):  # evals always cut
        return None
    reply = getattr(user.config, "max_tokens", 0)
    if tokens + reply <= bound:
        return None
    and_reply = f" and a reply of max_tokens={reply}" if reply else ""
    return f"{tokens} tokens{and_reply} are more than max_length={bound}"
