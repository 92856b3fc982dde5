"""What recipes/sdpo.yaml says of a reply: bare answers are right, and words tell what is wrong."""


def score(sample):
    """1 where the reply is the answer and nothing else."""
    return float(sample.completion == sample.answer)


def say(sample):
    """What a person would say to whoever wrote it; nothing where it is right. The answer is not
    given away."""
    if sample.completion == sample.answer:
        return None
    if sample.answer in sample.completion:
        return "Reply with the answer alone."
    return "That is not right."
