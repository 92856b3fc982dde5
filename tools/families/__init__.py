"""Task families: what the bundled models are pretrained on, and where the recipes' data come from.

Pure Python, no torch. Everything is drawn from a seeded `random.Random`, so a seed gives a stream,
always the same.

Three ideas hold the package together.

*Splits.* Every problem has a canonical `key` (commuted sums share one, a word and its reverse share
one, a context shares one whichever question is asked of it). `split_of(key)` hashes it, so which
problems a model was pretrained on, which a recipe may train on, and which only measure, is a
property of the problem and not of a file.

*Registers.* Like the web, the corpus answers the same kind of question barely ("19"), in a
sentence, with working, wrongly, or with a shrug. The phrasing of a question makes a register
likelier, never certain; a system message, a suffix or an earlier turn decides it. So a base model
knows more than it shows, which is what post-training is for.

*Levels.* Each family is graded, so that something can always be learned and something is always
left.

Each file stands on those above it:

    words        the words the problems are made of
    problems     what a problem is, and its split
    sums         arithmetic, stories
    lists        comparing, sorting, counting, reversing
    facts        extraction, json
    tone         everyday requests, with polite and curt replies
    unseen       sums and requests in forms for evals alone
    judging      whether a reply keeps a rule
    catalogue    the families by name, and drawing from a split
    registers    the ways in which a problem may be answered
    corpus       the pretraining documents

`PYTHONPATH=tools python -m families` prints the first documents.
"""

from __future__ import annotations

from families.catalogue import FAMILIES, VERIFIABLE, draw, draw_request
from families.corpus import BASE_WEIGHTS, Document, documents
from families.problems import LEVELS, Problem, Split, split_of
from families.tone import Request, curt_reply, polite_reply
from families.unseen import unseen_replies, unseen_request, unseen_sum

__all__ = [
    "BASE_WEIGHTS",
    "FAMILIES",
    "LEVELS",
    "VERIFIABLE",
    "Document",
    "Problem",
    "Request",
    "Split",
    "curt_reply",
    "documents",
    "draw",
    "draw_request",
    "polite_reply",
    "split_of",
    "unseen_replies",
    "unseen_request",
    "unseen_sum",
]
