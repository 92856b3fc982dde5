"""The true rule behind recipes/rlhf.yaml: people there prefer the formal one of two replies.

The policy is never trained on it. It is known only because the preferences were made by it (in
tools/make_recipe_data.py), so that what RLHF learned can be told from what it only seems to have.
Every reply among the preferences is three sentences long, so a reward model cannot learn from them
that nobody wants to read on.
"""

import re

FORMAL = (
    "Thank you for asking.",
    "It is good to hear from you.",
    "It is a pleasure.",
    "You are so very welcome to",
    "I would be glad if you",
    "I do look forward to it.",
    "Many thanks and kind regards.",
)
SENTENCES = 3
"""A greeting, the answer and a close: what is said beyond them is held against a reply."""


def score(sample):
    """How many formal phrases a reply has, less one for each sentence beyond three: 3 at most."""
    phrases = sum(phrase in sample.completion for phrase in FORMAL)
    sentences = sum(bool(part.strip()) for part in re.split(r"[.!?]", sample.completion))
    return phrases - max(0, sentences - SENTENCES)
