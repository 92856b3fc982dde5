"""How a reply says its answer: what the prompt asks for, what a right reply is, what is read."""

from __future__ import annotations

import re
from typing import Literal

Form = Literal["tag", "last_line", "boxed", "hashes", "number", "whole"]
"""Where in a reply the answer stands."""

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ASKED: dict[Form, str] = {
    "tag": "Write the answer as <answer>...</answer>.",
    "last_line": "Write the answer alone on the last line.",
    "boxed": "Write the answer in \\boxed{}.",
    "hashes": "Write the answer after ####.",
    "number": "The last number of the reply counts as the answer.",
    "whole": "Reply with the answer alone.",
}
_SAID: dict[Form, str] = {
    "tag": "<answer>{}</answer>",
    "boxed": "\\boxed{{{}}}",
    "hashes": "#### {}",
}


def asked(question: str, form: Form) -> str:
    """The question, and how its answer is to be written."""
    return f"{question}\n{_ASKED[form]}"


def said(answer: str, form: Form) -> str:
    """A reply that says the answer and nothing else."""
    return _SAID.get(form, "{}").format(answer)


def read(reply: str, form: Form) -> str | None:
    """The answer that stands in a reply; None where it has no such place.

    Of several tags, boxes or lines the last one counts.
    """
    if form == "tag":
        found = _TAG.findall(reply)
        return found[-1].strip() if found else None
    if form == "last_line":
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        return lines[-1] if lines else None
    from posttrain_recipes.training import extract

    return extract(reply, form) or None
