"""What stands around the tables of `docs/effects.md`, in words."""

HEAD = """\
# What the recipes showed

Every shipped recipe that states a claim about held-out data, run as `ptl run` runs it, over several
seeds. Written from `benchmarks/effects.json` by

    python benchmarks/effects.py

A claim is what the recipe says under `expect:`. It holds where every seed keeps that bound and
moves by more than the spread, which is the largest minus the smallest value after training. A limit
on what may be lost (`change > -25%`) holds where every seed keeps it. Before is the mean over
seeds. `tests/e2e/test_claims.py` runs `cpo` at every change of the code, and two more nightly
(`.ci/nightly`), with seed 0.

## In words

- `distill_on_policy`: from 16 prompts within two points of the teacher, where imitation of its
  answers stays 7 to 23 points below with three times the tokens.
- `distill_compress`: held-out 40% to 82 to 84% in a model of a quarter of the size; the teacher
  91%.
- `sdft`: of other forms of answer at 88.5% it keeps 71 to 79%, imitation 57.5 to 58%.
- `sdpo`: from a rule's words bare answers go from 43% to 87 to 89%, from its number (`grpo`) to
  88 to 90%: not told apart.
- `merge`: of two skills trained apart the mean has 95 to 97% of one and 80 to 82% of the other
  (alone 96 to 97 and 92); trained at once, 99 and 91. A soup of three seeds gains nothing.
- `dft`: of demonstrations two fifths of which are wrong, 84 to 85% of its samples are right, and
  30% of those of imitation; on good ones it gains nothing.
- `continual`: without replay the first skill falls from 91% to 53 to 61%, with a fifth of its
  data to 70 to 72%.
- `multi_objective`: for right answers alone, held-out sentences go from 48.5% to 1 to 3%; for
  both rewards, to 100%, and as many answers are right (91.0 to 94.5%, against 88.5 to 94.5%).
- `rlhf`: with a price on divergence the true rule prefers 92 to 95% of the held-out replies to
  those of the start; without one 22 to 31%, though the reward model rates them higher.
- `sft_then_rlhf`: the true rule prefers 97 to 99% of the held-out replies to those of the start;
  answers that SFT taught lost 4.3, 3.5 and 4.3 points of 83.
- `iterative_rlhf`: a held-out reply scores 1.5 of 3 after SFT, then 2.2, 2.6 and 2.8 (mean of the
  seeds).
- `compare_methods`: held-out sums from 46.5% to 96.2 (SFT), 93.2 (DPO), 92.7 (GRPO) and 95.0%
  (distillation), each with 20,000 tokens.
- `distill_then_rl`: from a teacher of 76 to 80%: held-out sums 46.5% to 82 to 87.5% by
  distillation, to 95 to 97% by RL.
- `rlvr_then_rubric`: held-out sums 46.5% to 96% and then 94 to 96%; polite replies preferred
  63.5%, then 16 to 32%, then 98.5 to 100%.
- `sft_distill_rl`: held-out sums 36.5%, then 45, 76 and 83% (mean of the seeds).
- `tool_use`: no product right before, 88 to 91% after imitation of calls, 95.5 to 96% after RL
  with the tool.
- `self_play`: 16% of games won against a player who takes any number, then 86.5 to 92.5%.
- `sft_mbpp`: none of 100 held-out programs pass their tests, then 97 to 98.
- `grpo_gsm8k`: 0%, then 85 to 89% by a little imitation and 97 to 98% by RL.
- `distill_reasoning`: 2% to 87 to 89%; the teacher 94%.
"""
AGAIN = """\
## What was measured again

- `sft` and `sft_then_dpo`: a test split goes by content now, so that both train on other records of
  `chat.jsonl` than before, and every seed on the same. Before, `held_out` was 89.5, 91.8 and 92.2%
  after SFT, and `tone` 97.5, 98.0 and 100.0% after DPO. The claims hold as they did.
- `rlhf`, `sft_then_rlhf` and `rlvr_then_rubric`: what divergence costs is taken off each token's
  advantage after the rewards were compared, and no longer off rewards before. `rlhf` has `kl_beta:
  0.3` for it, where it had 0.1; with 0.1 its claim does not hold any more (seed 2).
- The other recipes of the table above, as they have evals in new forms. Their claims are measured
  on the same records as before and hold with the same values, but for one record of 200 in one seed
  of `grpo_arithmetic`.
"""
FORMS = """\
## Forms that training never saw

What is claimed above is of new contents in the forms of training: held-out numbers, words, names
and requests, asked as the training files ask. These evals have other forms, and nothing is claimed
of them: sums in other words (`sums_new_forms`), requests of other kinds with replies in the phrases
of training (`tone_new_requests`), and those with replies of which no phrase was trained on
(`tone_new_forms`). `margin` is the mean difference of the two replies in log-probability per token.

{table}

Of tone, phrases are learned. With every method the known polite ones become likelier in replies to
other kinds of requests too (to the most, 93 to 95% of pairs, with `ipo`). To new phrases nothing
carries over: the share falls, and most where the known phrases rose most. Of sums in other words
about a quarter is right after RL and about a fifth after SFT. So `tone` and `held_out` tell of new
contents, and are no claim that kindness or arithmetic holds in new forms.
"""
PENDING = """
Not measured in new forms yet: {names}.

    python benchmarks/effects.py {recipes}
"""
REAL = """\
## On a real model

The bundled models are toys. Six recipes have a preset `small`, which trains SmolLM2-135M-Instruct
on two cores:

    python tools/small_model.py DIR
    {command}

Weights: {weights}. What is claimed was committed before the first of these runs. `sft_then_rl` and
`prompt_distill` were tried once before, on seed 100, and `constitutional_safety` five times, by
which its data, rates and steps were chosen; the rate of `dpo` is one that
`benchmarks/learning_rate.py` tried; the others were not tried. A claim holds where each seed keeps
its bound and, on the same held-out records before and after, moves with p < 0.01 (McNemar's exact
test for shares and rules, paired t for `nll`; not adjusted). A limit on what may be lost needs the
bound alone. What failed stays in. Before is one value where it is the same with every seed.
Core-minutes are what the engine computed for a run, its evals with it, by seed, and in its last try
where it was interrupted (`continual`, seed 1); two idle cores take about half as many minutes. By
the clock it was longer, as other programs computed on the same two cores.

{table}
{pending}
What it taught (numbers that are not in the table are of seed 0, counted in the replies that the run
kept):

- `sft_gsm8k`: the form of real solutions is learned in 24 steps of 8, and arithmetic is not. Of 100
  held-out replies 69 are in it, and 3 give the right number. 13 are cut off, most in a loop; others
  leave out the `<<...>>` of their steps (82 replies have one).
- `dpo`: pairs of which the model finds the other reply likelier turn round in 24 steps of 4.
- `sft_then_rl`: after 64 examples RL finds most of the way by a rule alone, though in 57% of the
  groups all eight replies are wrong, or all right, and teach nothing.
- `prompt_distill`: with "Always answer in French." in sight 64% of the replies meet the rule
  (`instructed`); without it none did before, and 59% after. The rule counts too few, as it asks for
  three words of a list. The French is bad in either case ("Je ne sais pas, le 1er dernier journaux
  est déjà."): a prompt learned by heart is no better than what it made the model do.
- `constitutional_safety`: refusals alone (`blunt`, 6 steps of 16) teach to refuse 90% of what harms
  and all of what does not. SFT on what the critic rewrote wins most of the harmless requests back;
  how many, and how much refusing it costs, swings with the seed: of the harmful 100, 71 and 90% are
  refused, of the harmless 33, 12.5 and 19%, so that the limit of 15% does not hold.
  The critic is what limits it: in a trial it judged two thirds of the harmful requests rightly, and
  seven of eight harmless ones.
- `continual`: without replay, 112 of 128 answers of the first kind end as those of the second do
  (`99`, then `#### 47`). With 125 of the first stage's records among 500 new ones, 2 do; the first
  skill is where it was, and the second is learned as well.

What did not move, or would not have:

- RL from the model as it is. Of 96 replies at temperature 1 to each of 16 tasks with one right
  answer (sums, comparing, counting, sorting, reversing words and lists of 2 to 5 words) none was
  that answer, so that every group is all wrong and no reward tells one from another: hence the SFT
  before it.
- Prompts that the model does not follow. None of six replies under each of "Answer in capital
  letters only.", "Answer in one word.", "Reply with JSON only." and "Answer as a numbered list."
  did as it was told: there is nothing to learn by heart.
- Accuracy on GSM8K: see above. Nothing is claimed of it at this size.
"""
