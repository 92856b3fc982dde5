"""The true rule behind recipes/rlhf.yaml: people there prefer the formal one of two replies.

The policy is never trained on it. It is known only because the preferences were made by it (in
tools/make_recipe_data.py), so that what RLHF learned can be told from what it only seems to have.
"""

FORMAL = (
    "Thank you for asking.",
    "It is good to hear from you.",
    "It is a pleasure.",
    "You are so very welcome to",
    "I would be glad if you",
    "I do look forward to it.",
    "Many thanks and kind regards.",
)


def score(sample):
    """How many formal phrases a reply has: three at most where it says each thing once."""
    return min(3, sum(phrase in sample.completion for phrase in FORMAL))
