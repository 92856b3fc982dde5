"""The second reward of recipes/estimators.yaml: it spreads ten times as far as right and wrong."""


def words(sample):
    """How many words a reply has, 10 at most."""
    return float(min(10, len(sample.completion.split())))
