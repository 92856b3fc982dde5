"""What the curves of training say, and how they should look: for `ptl explain`."""

from __future__ import annotations

METRICS = {
    "train/loss": "The loss of a step. Of imitation and preference it falls; of RL it is near 0 by "
    "its making and says nothing: look at reward/mean.",
    "train/grad_norm": "The gradient's norm before it is clipped. A jump that stays says that the "
    "learning rate is too high.",
    "train/tokens_per_second": "Tokens that were trained on a second. In RL it falls to 0 where no "
    "group of replies has anything to teach.",
    "reward/mean": "The mean reward of a step's sampled replies. It should rise; flat from the "
    "start, look at groups/zero_variance_share.",
    "reward/group_std": "How far the rewards of one prompt's replies lie apart, on the mean. 0: "
    "nothing can be learned.",
    "groups/zero_variance_share": "The share of prompts whose replies all got one reward, printed "
    "as zero-var. They teach nothing. Near 1 at the start: the reward pays nobody, or the model "
    "never gets it right. Near 1 after a rise: done.",
    "groups/learned": "How many prompts of a step taught something.",
    "policy/entropy": "Nats a token that the policy is unsure of. It falls slowly. Falling to 0 it "
    "tries nothing any more; rising without end the learning rate is too high.",
    "policy/kl_reference": "How far the policy went from the reference, in nats a reply; printed "
    "as kl. It is logged where kl_beta is above 0 or a reference is asked.",
    "policy/clip_share": "The share of tokens whose ratio to the sampler lies outside the bounds.",
    "policy/ratio_mean": "p_new/p_old of the sampled tokens, on the mean: near 1.",
    "completions/clipped_ratio": "The share of replies cut at max_tokens, printed as cut. Above "
    "0.1, raise max_tokens, unless the replies never end by themselves.",
    "completions/mean_length": "Tokens of a reply, on the mean; printed as len.",
    "rewards/accuracies": "Of preference training: the share of pairs whose chosen reply gained "
    "more over the reference than the rejected one.",
    "rewards/margins": "Of preference training: how much more the chosen reply gained, times beta.",
    "logps/chosen": "log p of the chosen replies. Where it falls with that of the rejected, the "
    "model unlearns both.",
    "completions/student_share": "Of gkd: the share of a step's prompts that the student answered "
    "itself.",
    "feedback/learned_share": "Of sdpo: the share of attempts that something was said of, and that "
    "were learned. At 0 nothing is learned.",
    "feedback/solved_share": "Of sdpo: the share of attempts that succeeded.",
    "align/unread_share": "Of distill_on_policy with align: spans: the share of the student's "
    "tokens that the teacher has no word on, as its tokenizer cannot say the same. Near 0.",
    "align/tokens_per_span": "Tokens of the student's in a span that is whole tokens of both "
    "tokenizers. The nearer to 1, the finer is what the teacher says.",
    "teacher/mass": "The probability that the teacher's top_k likeliest tokens have together. Far "
    "below 1 raise top_k.",
    "teacher/entropy": "Nats a token that the teacher is unsure of.",
}
"""By name, what it is and what it should do."""
PRINTED = {"zero-var": "groups/zero_variance_share", "cut": "completions/clipped_ratio"}
"""What a line of progress calls them."""


def find(word: str) -> str | None:
    """The metric of that name, of its last part, or as progress prints it."""
    plain = word.lower()
    whole = PRINTED.get(plain, plain)
    if whole in METRICS:
        return whole
    return next((name for name in METRICS if name.partition("/")[2] == plain), None)
