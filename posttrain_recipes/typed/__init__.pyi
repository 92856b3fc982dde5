"""Generated from the schema of recipes by tools/typed_stub.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

class RecipePart(dict[str, Any]): ...

class DatasetPiece(RecipePart): ...
class MethodPiece(RecipePart): ...
class RewardPiece(RecipePart): ...
class EvalPiece(RecipePart): ...
class EnginePiece(RecipePart): ...
class TrackerPiece(RecipePart): ...
class RecipePiece(RecipePart): ...
class StagePiece(RecipePart): ...
class RepeatPiece(RecipePart): ...
class ComparePiece(RecipePart): ...
class LoraPiece(RecipePart): ...
class RendererPiece(RecipePart): ...
class ResourcesPiece(RecipePart): ...

class _Datasets:
    def collected(
        self,
        *,
        stage: str,
        test_size: int = ...,
        limit: int | None = ...,
    ) -> DatasetPiece: """Records that an earlier stage of the recipe made, or left behind while it trained.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            stage: The stage that made them, above this one.
        """
    def cookbook(
        self,
        *,
        call: str,
        test_size: int = ...,
        limit: int | None = ...,
        arguments: Mapping[str, Any] = ...,
        split: Literal['train', 'test'] = ...,
    ) -> DatasetPiece: """Environments of tinker-cookbook: message environments, others, and its own recipes'.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            call: The function, or the RLDatasetBuilder, as module:name.
            arguments: Its arguments by name; the renderer and the model that it may ask for are both `ptl`.
            split: Of an RLDatasetBuilder: which of the two datasets that it builds. [default: train]
        """
    def curriculum(
        self,
        *,
        data: DatasetPiece,
        test_size: int = ...,
        limit: int | None = ...,
        by: str = ...,
        descending: bool = ...,
        minimum: float | None = ...,
        maximum: float | None = ...,
    ) -> DatasetPiece: """Another dataset sorted by difficulty: a field of its prompts, a pass rate, or length.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            data: The dataset that is sorted, written as a `dataset:` is.
            by: The field with the difficulty, a number, as `level`; or `length`. [default: length]
            descending: The largest number first, as for a pass rate. [default: False]
            minimum: Leave out records below this.
            maximum: Leave out records above this.
        """
    def huggingface(
        self,
        *,
        path: str | Path,
        test_size: int = ...,
        limit: int | None = ...,
        columns: Mapping[str, str] = ...,
        system: str | None = ...,
        bad_rows: Literal['stop', 'skip'] = ...,
        name: str | None = ...,
        split: str = ...,
        revision: str | None = ...,
        streaming: bool = ...,
    ) -> DatasetPiece: """Records of a Hugging Face dataset; its columns tell what they are, as with `jsonl`.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            columns: Fields that go by another name there, as `{question: problem, answer: solution}`.
            system: A system prompt for records that have none of their own.
            bad_rows: A row that cannot be used stops the run, or is left out (and their number is logged). [default: stop]
            path: Its id on the hub, as `openai/gsm8k`, or a local directory relative to the recipe.
            name: Its configuration (subset), where it has several.
            split: Which split; slices such as `train[:1000]` work too, except when streaming. [default: train]
            revision: A branch, a tag or a commit hash; a hash makes the run reproducible.
            streaming: Read over the network as needed, rather than download all of it first. [default: False]
        """
    def jsonl(
        self,
        *,
        path: str | Path,
        test_size: int = ...,
        limit: int | None = ...,
        columns: Mapping[str, str] = ...,
        system: str | None = ...,
        bad_rows: Literal['stop', 'skip'] = ...,
        format: Literal['jsonl', 'json', 'csv', 'tsv', 'parquet'] | None = ...,
    ) -> DatasetPiece: """Records of a JSONL, JSON, CSV, TSV or parquet file; its fields tell what they are.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            columns: Fields that go by another name there, as `{question: problem, answer: solution}`.
            system: A system prompt for records that have none of their own.
            bad_rows: A row that cannot be used stops the run, or is left out (and their number is logged). [default: stop]
            path: The file, relative to the recipe, or its address, as `s3://bucket/train.jsonl`.
            format: How the file is written; by its suffix where not given.
        """
    def mix(
        self,
        *,
        parts: Sequence[DatasetPiece],
        test_size: int = ...,
        limit: int | None = ...,
        weights: Sequence[float] | None = ...,
        size: int | None = ...,
    ) -> DatasetPiece: """Several datasets interleaved: all of each, or in shares given by weights.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            parts: The datasets, each written as a `dataset:` is.
            weights: The share of each part, as `[4, 1]`; by the number of its records where not given.
            size: Records in all, repeating parts that are too short for it.
        """
    def nim(
        self,
        *,
        test_size: int = ...,
        limit: int | None = ...,
        opponent: Literal['none', 'random', 'perfect'] = ...,
        episodes: int = ...,
        least: int = ...,
        most: int = ...,
        seed: int = ...,
    ) -> DatasetPiece: """The game of Nim: sticks are taken in turn, one to three; who takes the last one wins.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            opponent: Who takes the other seat: nobody (the policy does), a player who takes any number, or
        one who makes no mistake. [default: none]
            episodes: How many beginnings there are. [default: 256]
            least: The fewest sticks at the beginning. [default: 5]
            most: The most sticks at the beginning. [default: 15]
            seed: Seeds the beginnings and the moves of a random opponent. [default: 0]
        """
    def tools(
        self,
        *,
        data: DatasetPiece,
        tools: Sequence[str],
        reward: RewardPiece,
        test_size: int = ...,
        limit: int | None = ...,
        format: Literal['json', 'tag'] = ...,
        describe: bool = ...,
        max_calls: int = ...,
        max_result: int = ...,
        timeout: float = ...,
    ) -> DatasetPiece: """Prompts that may be answered with the help of tools, which are functions of yours.

        Args:
            test_size: Records held out of training for this stage's evals, chosen by a hash of what they ask. [default: 0]
            limit: Use at most this many records, the first ones.
            data: The prompts, written as a `dataset:` is.
            tools: The functions, each as module:function; async ones too.
            reward: What the answer is worth.
            format: How a tool is called: json, <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>
        as Qwen's models and others are taught; tag, <add>1</add> for functions of one text. [default: json]
            describe: Tell the model of the tools, in its system message. [default: True]
            max_calls: Calls in one episode; a reply that would make more counts as the answer. [default: 4]
            max_result: Longest result in characters; what is beyond is cut off. [default: 1000]
            timeout: Seconds that a call may take. [default: 10.0]
        """

dataset: _Datasets

class _Methods:
    def ai_preferences(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        judge: Mapping[str, Any] | None = ...,
        policy: Mapping[str, Any] | None = ...,
        question: str = ...,
        score: Literal['logits', 'text'] = ...,
        pairs: int = ...,
        margin: float = ...,
        retries: int = ...,
    ) -> MethodPiece: """Makes preference pairs: the policy writes two replies, a judge model says which is better.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is left out, and counted.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            judge: Who judges; the stage's own start where not given.
            policy: Who writes the replies; the stage's own start where not given.
            question: What the judge is asked, with {prompt}, {a} and {b}; it answers A or B. [default: Request: {prompt}
        Reply A: {a}
        Reply B: {b}
        Which reply is better, A or B?]
            score: Read the judge's log-odds of A and B, or let it write and find the letter. [default: logits]
            pairs: Pairs of replies to each prompt. [default: 1]
            margin: Pairs are ties up to this margin, in nats of log-odds. [default: 0.0]
            retries: How often a text without a verdict is asked for again before it counts as missing. [default: 2]
        """
    def best_of_n(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        model: Mapping[str, Any] | None = ...,
        n: int = ...,
        keep: int = ...,
        min_reward: float | None = ...,
    ) -> MethodPiece: """Makes conversations of the best of n replies to each prompt, and pairs of best and worst.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is left out, and counted.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            model: Who replies; the stage's own start where not given.
            n: Replies to each prompt. [default: 8]
            keep: Keep this many different replies to each prompt, those with the highest reward. [default: 1]
            min_reward: Keep only replies whose reward is at least this; a pair's better reply has to reach it
        too. Where not given, a reply passes (`pass_at_n`) with a reward above 0.
        """
    def constitutional(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        principles: Sequence[str] = ...,
        critic: Mapping[str, Any] | None = ...,
        samples: int = ...,
        rounds: int = ...,
        critique: str = ...,
        revise: str = ...,
    ) -> MethodPiece: """Makes conversations and pairs: the policy answers, and revises by a written principle.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is left out, and counted.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            principles: The constitution; one of them is drawn for each prompt and round. [default: ['The reply should be helpful, honest and harmless.']]
            critic: Who criticises and revises; the stage's own start where not given.
            samples: Answers to each prompt, each of which is revised. [default: 1]
            rounds: How often an answer is criticised and revised. [default: 1]
            critique: What the critic is asked first, with {prompt}, {reply} and {principle}. [default: Request: {prompt}
        Reply: {reply}
        Principle: {principle}
        Critique the reply.]
            revise: What it is asked then, in the same conversation. [default: Rewrite the reply.]
        """
    def cpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        beta: float = ...,
        nll_weight: float = ...,
    ) -> MethodPiece: """Contrastive preference optimization: dpo without a reference, imitating the chosen reply.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Pairs in one optimizer step. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            beta: Scale of the margin between the two replies. [default: 0.1]
            nll_weight: Weight of imitating the chosen reply (nats per token); 0 only contrasts. [default: 1.0]
        """
    def distill_off_policy(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        teacher: Mapping[str, Any] | None = ...,
        top_k: int = ...,
    ) -> MethodPiece: """Off-policy distillation: learn text of a teacher, or its distribution over each next token.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Examples in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            teacher: Whose probabilities are learned; without one the text itself is, token by token.
            top_k: How many of the teacher's likeliest tokens are learned at each position. [default: 20]
        """
    def distill_on_policy(
        self,
        *,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        align: Literal['tokens', 'spans'] = ...,
    ) -> MethodPiece: """On-policy distillation: score each token of the student's own replies by a teacher.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Prompts in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            group_size: Replies that the student writes to each prompt. [default: 1]
            max_tokens: Longest reply in tokens; a reply that is cut there is learned from as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            teacher: Whose log-probabilities score the replies: one model, or a list with `weight`s.
            align: What is compared: the student's tokens, which a teacher of the same tokenizer reads as
        they are; or spans of text, which one of another tokenizer reads in its own. [default: tokens]
        """
    def dpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        loss: Literal['sigmoid', 'ipo', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', 'discopop', 'sigmoid_norm', 'sft'] | Mapping[str, float] = ...,
        beta: float = ...,
        label_smoothing: float = ...,
        divergence: Literal['reverse_kl', 'forward_kl', 'js', 'alpha'] = ...,
        divergence_alpha: float | None = ...,
        ld_alpha: float = ...,
    ) -> MethodPiece: """Direct preference optimization: prefer the chosen reply over the rejected one.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Pairs in one optimizer step. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            loss: Of the margin h and the scores s = log p/p_ref of both replies: sigmoid: -log sigmoid(beta h), DPO; ipo: (h - 1/(2 beta))^2 of means over tokens, which does not push h without end; hinge: max(0, 1 - beta h), which stops at h = 1/beta; robust: DPO's loss, unbiased where a share label_smoothing of the labels is flipped; exo_pair: KL of sigmoid(beta h) to 1 - label_smoothing, mode-seeking where DPO covers; nca_pair: Noise contrastive alignment: the chosen reply's likelihood must not fall; bco_pair: A binary classifier's loss: -log sigmoid(r+) - log sigmoid(-r-), r = beta log p/p_ref; sppo_hard: (l+ - 1/(2 beta))^2 + (l- + 1/(2 beta))^2 of l = log p/p_ref, as if the winner always won; aot: DPO's loss of sorted margins: those of the policy dominate the reference's as a distribution; aot_unpaired: DPO's loss of sorted log p/p_ref, chosen against rejected of the same rank in the batch; apo_zero: sigmoid(-r+) + sigmoid(r-): chosen up, rejected down; for chosen replies better than its own; apo_down: sigmoid(r+) + sigmoid(-(r+ - r-)): both down, the rejected more; for chosen ones worse; discopop: A blend of DPO's loss and exp(-beta h), found by a language model; sigmoid_norm: -log sigmoid(beta h) of means over tokens: length-normalized DPO; sft: -log p of the chosen reply, a mean over the batch's tokens, beside another loss. Several are summed, as {sigmoid: 1, nca_pair: 0.5}. [default: sigmoid]
            beta: Strength of the pull towards the reference; smaller moves further away from it. [default: 0.1]
            label_smoothing: Share of pairs whose labels are taken to be wrong; for the losses sigmoid, robust,
        exo_pair, aot and aot_unpaired. [default: 0.0]
            divergence: From the reference, for which the loss is derived: the score of a reply is f'(t) of t =
        p/p_ref. forward_kl: 1 - 1/t; js: log 2t/(t + 1); alpha: (t^(a - 1) - 1)/(a - 1), a the
        divergence_alpha. [default: reverse_kl]
            divergence_alpha: For divergence: alpha, a; 0.5 by default. Towards 0 it is the forward KL, towards 1 the
        reverse.
            ld_alpha: What log p of tokens counts that stand beyond the length of the pair's shorter reply, the
        policy's and the reference's: below 1 a reply gains less by being long. LD-DPO, Liu et al.
        2024, arXiv 2409.06411. [default: 1.0]
        """
    def gepa(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        system: str = ...,
        calls: int = ...,
        selection: int = ...,
        test: int = ...,
        reflection: int = ...,
        reflect: Mapping[str, Any] | None = ...,
        endpoint: Mapping[str, Any] | None = ...,
        reflect_tokens: int = ...,
        question: str = ...,
        proposals: Sequence[str] = ...,
    ) -> MethodPiece: """Evolves a system prompt on a reward, by having a model read what went wrong.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is scored as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            system: The instructions that it begins with. [default: Answer the request.]
            calls: Replies that may be scored, those of choosing included: the budget. The last turn may
        take some more. [default: 400]
            selection: Prompts that choose between instructions: the first ones of the data. [default: 32]
            test: Prompts that the result is measured on, before and after: the next ones. 0: it is not. [default: 64]
            reflection: Replies that are read at each turn, to the other prompts. [default: 3]
            reflect: Who reads and writes; the stage's own start where not given.
            endpoint: Somebody behind an OpenAI-compatible endpoint, in place of `reflect`.
            reflect_tokens: Longest instructions that are written. [default: 512]
            question: What is asked for, with {instructions} and {examples}. What stands between <instructions>
        and </instructions> of the answer is taken, or all of it. [default: An assistant reads these instructions before each request:

        <instructions>
        {instructions}
        </instructions>

        This is what came of some requests, and what was said of each reply:

        {examples}

        Write better instructions for the assistant, which would have made its replies better. Say nothing
        else; write them between <instructions> and </instructions>.]
            proposals: Instructions to try in this order, in place of asking: where no model at hand can
        reflect.
        """
    def gkd(
        self,
        *,
        teacher: Mapping[str, Any],
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        student_share: float = ...,
        others: Literal['data', 'teacher'] = ...,
        beta: float = ...,
        top_k: int = ...,
    ) -> MethodPiece: """Generalized knowledge distillation: any divergence, on the student's replies and on others.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Prompts in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            group_size: Replies that the student writes to each prompt. [default: 1]
            max_tokens: Longest reply in tokens; a reply that is cut there is learned from as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            teacher: Whose probabilities are learned.
            student_share: Share of the prompts that the student answers itself, drawn anew at each: lambda. [default: 0.5]
            others: Whose replies there are to the other prompts: the data's own, of conversations, or such
        as the teacher writes at that step. [default: data]
            beta: Which divergence: 0 is the forward KL, 1 the reverse KL, in between a Jensen-Shannon. [default: 0.5]
            top_k: How many of the teacher's likeliest tokens are told apart at each position; all others
        count as one. [default: 20]
        """
    def grpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        updates_per_batch: int = ...,
        max_staleness: int = ...,
        zero_variance_groups: Literal['drop', 'replace'] = ...,
        max_replacements: int = ...,
        retries: int = ...,
        show_every: int | None = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        max_turns: int = ...,
        temperature: float = ...,
        overlong: Literal['keep', 'mask', 'penalize'] = ...,
        overlong_buffer: int = ...,
        overlong_penalty: float = ...,
        reference: Mapping[str, Any] | None = ...,
        on_reward_error: Literal['drop', 'zero', 'stop'] = ...,
        reward_timeout: float | None = ...,
        observation_weight: float = ...,
        entropy_bonus: float = ...,
        top_entropy: float | None = ...,
        importance_weights: Literal['token_truncate', 'token_mask', 'sequence_truncate', 'sequence_mask'] | None = ...,
        importance_cap: float = ...,
        importance_floor: float = ...,
        behaviour_logprobs: Literal['auto', 'sampled', 'recomputed'] = ...,
        off_policy_mask: float | None = ...,
        kl_beta: float = ...,
        kl_in: Literal['advantage', 'loss'] = ...,
        kl_estimator: Literal['k1', 'k3'] | None = ...,
        advantage: Literal['group_mean', 'group_norm', 'rloo', 'dr_grpo', 'reinforce_pp', 'reinforce_pp_baseline', 'maxrl', 'gpg', 'opo', 'remax', 'pass_at_k', 'gdpo'] = ...,
        loss: Literal['importance_sampling', 'ppo', 'cispo', 'dro', 'gspo', 'sapo', 'gmpo', 'vespo'] = ...,
        length_norm: Literal['sequence', 'token', 'constant'] | None = ...,
        clip_low: float | None = ...,
        clip_high: float | None = ...,
        delta: float | None = ...,
        pass_k: int = ...,
        dro_beta: float = ...,
        sapo_positive: float = ...,
        sapo_negative: float = ...,
        collect: Mapping[str, Any] | None = ...,
        flat_groups: Literal['drop', 'replace'] = ...,
    ) -> MethodPiece: """Policy gradients on groups of rewarded replies: GRPO, RLOO, Dr. GRPO, DAPO and kin.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: constant]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Groups in one batch of rollouts. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many optimizer steps, whatever `epochs` says.
            updates_per_batch: Optimizer steps on a batch of rollouts, each on an equal share of its groups; from the second
        on the data are of a slightly older policy, which `loss: ppo` and the like bound. [default: 1]
            max_staleness: Batches that the sampling policy may lie behind: above 0, sampling and training overlap. [default: 0]
            zero_variance_groups: A group whose rewards are all the same: drop goes on without it (an advantage relative to the
        group is 0 there; reinforce_pp, relative to the batch, still learns of it), replace samples
        another prompt in its place (dynamic sampling, DAPO). [default: drop]
            max_replacements: For zero_variance_groups: replace, how many other prompts are tried in one place. [default: 3]
            retries: How often a group that could not be sampled is tried again before the stage fails; in an
        environment also how often an episode in which it raised is begun again, on its own. [default: 2]
            show_every: Steps between rollouts that are shown in MLflow; by default about eight times a stage.
            group_size: Replies to each prompt, which are compared with each other; 1 is for an advantage that
        compares the whole batch. [default: 8]
            max_tokens: Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            max_turns: In an environment: replies in one episode; one that goes on is cut there. [default: 16]
            temperature: Of sampling; at 1 the policy that is trained is the one that samples. At any other the ratio
        p/q needs log q of what was sampled from, and an engine that gives log p instead is refused. [default: 1.0]
            overlong: A reply that is cut at max_tokens: kept as it was rewarded, masked out of the loss (its
        reward still counts in the baseline), or penalized. [default: keep]
            overlong_buffer: For overlong: penalize, the penalty grows over this many tokens before max_tokens. [default: 0]
            overlong_penalty: For overlong: penalize, what is taken off the reward of a reply that is cut. [default: 1.0]
            reference: The fixed reference; by default where the stage starts. If given, the divergence from it is
        measured even where it costs nothing.
            on_reward_error: A reward, or an environment, that raises or takes too long: drop leaves the reply (or the
        episode) out of its group, zero counts it as 0, stop ends the stage. [default: drop]
            reward_timeout: Seconds that a reward may take for a group of replies, and an environment to begin an episode
        or to answer a reply; by default no limit.
            observation_weight: In environments: the weight of a cross-entropy loss on what was answered between the policy's
        replies, lambda of ECHO (arXiv 2605.24517). Takes a second pass; turns that are read alone
        (`fresh`) have no answers to learn. [default: 0.0]
            entropy_bonus: What a nat of the policy's entropy adds, in units of the advantage: -log q of each token less
        the mean of its group, times this. A group whose rewards are all the same has none. [default: 0.0]
            top_entropy: Learn from this share of a batch's tokens alone, those at which the policy was least certain,
        as 0.2: Wang et al. 2025, arXiv 2506.01939. Takes a prefill of each reply.
            importance_weights: What the loss of a token is multiplied by where another policy wrote it: w = p_old/q, with
        p_old the policy as the batch began, which reads each reply again, and q the one that sampled;
        the ratio of the loss is p/p_old then. token: of each token; sequence: the product over the
        reply. truncate: no more than importance_cap; mask: 0 above it. By default nothing is
        multiplied, and the ratio of the loss is p/q.
            importance_cap: For importance_weights: the largest that is taken as it is. [default: 3.0]
            importance_floor: For importance_weights: the smallest; below it truncate takes this, and mask 0. [default: 0.0]
            behaviour_logprobs: log q of the sampling policy: sampled, as the server tells it with a sample; recomputed, as
        the same weights read it afterwards, one prefill of each reply, so that ratios and KL compare
        like with like; auto recomputes where the two are more than 0.03 nats a token apart (root mean
        square) in the stage's first groups, and takes the embedded engine's as they are; with
        importance_weights, which see to the difference, auto is sampled. [default: auto]
            off_policy_mask: Leave out replies (of rewarded steps, the tokens) that are worse than their group and of
        which log q/p is more than this, in nats, the mean of the reply's tokens: DeepSeek-V3.2, arXiv
        2512.02556. Takes a second pass.
            kl_beta: What a nat of divergence from the reference costs, in units of the advantage. [default: 0.0]
            kl_in: Where the cost enters. advantage: kl_beta log q/p_ref is taken off the advantage of each
        token, after rewards were compared; every engine can do that. loss: kl_beta k3 is added to each
        token's loss, as TRL and DeepSeek do, which takes a second pass of the engine. [default: advantage]
            kl_estimator: Of a token's divergence: k1, log q/p_ref, the default in the advantage; k3,
        p_ref/q - 1 - log p_ref/q, never negative and the only one in the loss.
            advantage: From rewards to advantages: group_mean: r - mean(r), the group's mean as the baseline of REINFORCE; group_norm: (r - mean(r)) / (std(r) + 1e-6), GRPO; rloo: r - mean of the other G - 1 rewards, REINFORCE leave-one-out; dr_grpo: r - mean(r) with a constant length normalization, Dr. GRPO; reinforce_pp: (r - mean) / (std + 1e-6) over the whole batch, REINFORCE++; reinforce_pp_baseline: (r - mean of the group) / (std of those of the batch + 1e-6), REINFORCE++-baseline; maxrl: (r - mean(r)) / (mean(r) + 1e-6), maximum likelihood RL; gpg: (r - mean(r)) B / (B - M) for B groups of which M do not vary, GPG; opo: r - sum(l r) / sum(l) with l the lengths, the baseline of least variance, OPO; remax: r - the reward of the greedy reply to the same prompt, which is sampled too, ReMax; pass_at_k: what r raises the best of pass_k replies by, mean over all sets of pass_k - 1 others; gdpo: each reward normalized in its group, their weighted sum then over the batch, GDPO. [default: group_norm]
            loss: The surrogate, of the ratio rho = p/q: importance_sampling: -rho A, no clipping; ppo: -min(rho A, clip(rho) A); cispo: -clip(rho) A log p, the clipped ratio a constant weight of the token's gradient; dro: -(A log p - beta/2 (log rho)^2); gspo: -min(s A, clip(s) A) with s = exp(mean log rho), the ratio of the sequence; sapo: -(4/tau) sigmoid(tau (rho - 1)) A, a soft gate in the place of a clip; gmpo: -exp(mean of clipped log rho) A, the geometric mean of the tokens' ratios; vespo: -phi(w) A log p with phi(w) = w^k e^(lambda (1 - w)), w the ratio of the sequence. [default: ppo]
            length_norm: What a token weighs: sequence (replies count the same), token (tokens do), constant
        (max_tokens divides all); by default what the paper of the advantage does.
            clip_low: Smallest ratio p/q that is not clipped; by default 0.8 for ppo, 0 for cispo, 0.9997 for gspo, 0.67032 for gmpo.
            clip_high: Largest ratio p/q that is not clipped; by default 1.2 for ppo, 4 for cispo, 1.0004 for gspo, 1.49182 for gmpo.
            delta: For loss ppo: the largest ratio p/q of a reply that is worse than its group, whose gradient
        is otherwise not clipped; above clip_high. Takes a second pass of the engine.
            pass_k: For advantage pass_at_k: of how many replies the best counts. [default: 4]
            dro_beta: For loss dro: the pull towards the policy that sampled. [default: 0.05]
            sapo_positive: For loss sapo: how soon its gate closes where the advantage is positive. [default: 1.0]
            sapo_negative: For loss sapo: how soon it closes elsewhere. [default: 1.05]
            collect: Leave good rollouts for later stages (`dataset: {use: collected}`), as
        {min_reward: 1, keep: 2}: conversations, and the best and worst of a group as a pair.
            flat_groups: The old name of zero_variance_groups. [default: drop]
        """
    def kto(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        beta: float = ...,
        desirable_weight: float = ...,
        undesirable_weight: float = ...,
    ) -> MethodPiece: """Kahneman-Tversky optimization: more of the replies called good, less of those called bad.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Replies in one optimizer step, good and bad; z is a mean over as many mismatched ones. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            beta: Strength of the pull towards the reference; smaller moves further away from it. [default: 0.1]
            desirable_weight: Weight of the good replies; the paper wants weight times number of the good to be 1 to
        4/3 times that of the bad. [default: 1.0]
            undesirable_weight: Weight of the bad replies. [default: 1.0]
        """
    def merge(
        self,
        *,
        of: Sequence[Mapping[str, Any]],
        weights: Sequence[float] | None = ...,
        how: Literal['linear', 'slerp'] = ...,
        since: Mapping[str, Any] | None = ...,
    ) -> MethodPiece: """Merge the adapters of earlier stages into one, without training: soups, sums, slerp.

        Args:
            of: What is merged, as [{stage: first}, {stage: second}]: stages of one base model, whose
        adapters are of the same layers, of any ranks; `base` counts as an update of 0.
            weights: What each of them counts; by default 1/n, a model soup. They need not add up to 1: [1, 1]
        adds two skills, [1, -1] takes the second away. For slerp their sum is 1.
            how: linear: the weighted sum; slerp: of two, along the arc between them, matrix by matrix. [default: linear]
            since: What their updates are counted from: a stage that all of them started from; by default
        the base model. For linear it changes nothing where the weights add up to 1.
        """
    def online_dpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        updates_per_batch: int = ...,
        max_staleness: int = ...,
        zero_variance_groups: Literal['drop', 'replace'] = ...,
        max_replacements: int = ...,
        retries: int = ...,
        show_every: int | None = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        max_turns: int = ...,
        temperature: float = ...,
        overlong: Literal['keep', 'mask', 'penalize'] = ...,
        overlong_buffer: int = ...,
        overlong_penalty: float = ...,
        reference: Mapping[str, Any] | None = ...,
        on_reward_error: Literal['drop', 'zero', 'stop'] = ...,
        reward_timeout: float | None = ...,
        loss: Literal['sigmoid', 'ipo', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', 'discopop', 'sigmoid_norm', 'sft'] | Mapping[str, float] = ...,
        beta: float = ...,
        label_smoothing: float = ...,
        divergence: Literal['reverse_kl', 'forward_kl', 'js', 'alpha'] = ...,
        divergence_alpha: float | None = ...,
        ld_alpha: float = ...,
        opponent: Literal['policy', 'reference'] = ...,
        xpo_alpha: float = ...,
        flat_groups: Literal['drop', 'replace'] = ...,
    ) -> MethodPiece: """Online DPO: prefer the better of two replies that the policy has just written.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: constant]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Groups in one batch of rollouts. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many optimizer steps, whatever `epochs` says.
            updates_per_batch: Optimizer steps on a batch of rollouts, each on an equal share of its groups; from the second
        on the data are of a slightly older policy, which `loss: ppo` and the like bound. [default: 1]
            max_staleness: Batches that the sampling policy may lie behind: above 0, sampling and training overlap. [default: 0]
            zero_variance_groups: A group whose rewards are all the same: drop goes on without it (an advantage relative to the
        group is 0 there; reinforce_pp, relative to the batch, still learns of it), replace samples
        another prompt in its place (dynamic sampling, DAPO). [default: drop]
            max_replacements: For zero_variance_groups: replace, how many other prompts are tried in one place. [default: 3]
            retries: How often a group that could not be sampled is tried again before the stage fails; in an
        environment also how often an episode in which it raised is begun again, on its own. [default: 2]
            show_every: Steps between rollouts that are shown in MLflow; by default about eight times a stage.
            group_size: Replies of the policy to each prompt. The best and the worst are a pair; with opponent:
        reference each is one with a reply of the reference. [default: 2]
            max_tokens: Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            max_turns: In an environment: replies in one episode; one that goes on is cut there. [default: 16]
            temperature: Of sampling; at 1 the policy that is trained is the one that samples. At any other the ratio
        p/q needs log q of what was sampled from, and an engine that gives log p instead is refused. [default: 1.0]
            overlong: A reply that is cut at max_tokens: kept as it was rewarded, masked out of the loss (its
        reward still counts in the baseline), or penalized. [default: keep]
            overlong_buffer: For overlong: penalize, the penalty grows over this many tokens before max_tokens. [default: 0]
            overlong_penalty: For overlong: penalize, what is taken off the reward of a reply that is cut. [default: 1.0]
            reference: The fixed reference; by default where the stage starts. If given, the divergence from it is
        measured even where it costs nothing.
            on_reward_error: A reward, or an environment, that raises or takes too long: drop leaves the reply (or the
        episode) out of its group, zero counts it as 0, stop ends the stage. [default: drop]
            reward_timeout: Seconds that a reward may take for a group of replies, and an environment to begin an episode
        or to answer a reply; by default no limit.
            loss: Of the margin h and the scores s = log p/p_ref of both replies: sigmoid: -log sigmoid(beta h), DPO; ipo: (h - 1/(2 beta))^2 of means over tokens, which does not push h without end; hinge: max(0, 1 - beta h), which stops at h = 1/beta; robust: DPO's loss, unbiased where a share label_smoothing of the labels is flipped; exo_pair: KL of sigmoid(beta h) to 1 - label_smoothing, mode-seeking where DPO covers; nca_pair: Noise contrastive alignment: the chosen reply's likelihood must not fall; bco_pair: A binary classifier's loss: -log sigmoid(r+) - log sigmoid(-r-), r = beta log p/p_ref; sppo_hard: (l+ - 1/(2 beta))^2 + (l- + 1/(2 beta))^2 of l = log p/p_ref, as if the winner always won; aot: DPO's loss of sorted margins: those of the policy dominate the reference's as a distribution; aot_unpaired: DPO's loss of sorted log p/p_ref, chosen against rejected of the same rank in the batch; apo_zero: sigmoid(-r+) + sigmoid(r-): chosen up, rejected down; for chosen replies better than its own; apo_down: sigmoid(r+) + sigmoid(-(r+ - r-)): both down, the rejected more; for chosen ones worse; discopop: A blend of DPO's loss and exp(-beta h), found by a language model; sigmoid_norm: -log sigmoid(beta h) of means over tokens: length-normalized DPO; sft: -log p of the chosen reply, a mean over the batch's tokens, beside another loss. Several are summed, as {sigmoid: 1, nca_pair: 0.5}. [default: sigmoid]
            beta: Strength of the pull towards the reference; smaller moves further away from it. [default: 0.1]
            label_smoothing: Share of pairs whose labels are taken to be wrong; for the losses sigmoid, robust,
        exo_pair, aot and aot_unpaired. [default: 0.0]
            divergence: From the reference, for which the loss is derived: the score of a reply is f'(t) of t =
        p/p_ref. forward_kl: 1 - 1/t; js: log 2t/(t + 1); alpha: (t^(a - 1) - 1)/(a - 1), a the
        divergence_alpha. [default: reverse_kl]
            divergence_alpha: For divergence: alpha, a; 0.5 by default. Towards 0 it is the forward KL, towards 1 the
        reverse.
            ld_alpha: What log p of tokens counts that stand beyond the length of the pair's shorter reply, the
        policy's and the reference's: below 1 a reply gains less by being long. LD-DPO, Liu et al.
        2024, arXiv 2409.06411. [default: 1.0]
            opponent: Who writes the other reply of a pair. [default: policy]
            xpo_alpha: For opponent: reference, what a nat of log p of the reference's reply costs: XPO's bonus
        on exploring what the reference would not say. [default: 0.0]
            flat_groups: The old name of zero_variance_groups. [default: drop]
        """
    def orpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        beta: float = ...,
    ) -> MethodPiece: """Odds ratio preference optimization: imitate the chosen reply, and avoid the rejected one.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Pairs in one optimizer step. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            beta: Weight of the odds ratio beside imitation, the paper's lambda; 0 is sft on the chosen. [default: 0.1]
        """
    def pass_rates(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        model: Mapping[str, Any] | None = ...,
        samples: int = ...,
    ) -> MethodPiece: """Makes prompts with their pass rates: how often a model's replies earn the reward.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is left out, and counted.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            model: Who replies; the stage's own start where not given.
            samples: Replies to each prompt; one that is cut off is scored as it is. [default: 8]
        """
    def prompt_distill(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        system: str | None = ...,
        teacher: Mapping[str, Any] | None = ...,
        top_k: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
    ) -> MethodPiece: """Prompt distillation: learn to answer without a prompt as one answers with it.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Examples in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            system: The instructions that the teacher reads as a system message and the student does not. By
        default each prompt's own system message, as those that `gepa` leaves have.
            teacher: Who answers under the instructions; the stage's own start where not given.
            top_k: How many of the teacher's likeliest tokens are learned at each position; 0 learns the
        answer itself. [default: 20]
            max_tokens: Longest answer in tokens; one that is cut there is learned as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the teacher's answers; 0 takes the likeliest token each time. [default: 1.0]
        """
    def reward_model(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        centering: float = ...,
    ) -> MethodPiece: """Reward modelling: learn to score replies as the people did who preferred one of two.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Pairs in one optimizer step. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            centering: Weight of keeping the rewards of a pair near 0 in sum, so that stages compare; TRL
        suggests 0.01. [default: 0.0]
        """
    def sdft(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        top_k: int = ...,
        skip_tokens: int = ...,
        template: str = ...,
    ) -> MethodPiece: """Self-distillation: learn what the model itself says when it is shown a demonstration.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Prompts in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            group_size: Replies that the student writes to each prompt. [default: 1]
            max_tokens: Longest reply in tokens; a reply that is cut there is learned from as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            top_k: How many of the teacher's likeliest tokens are learned at each position. [default: 20]
            skip_tokens: First tokens of a reply that are not learned, where the teacher mentions the example. [default: 0]
            template: How the teacher is shown the demonstration, with {question} and {answer}. [default: {question}

        This is an example for a response to the question:
        {answer}

        Now answer with a response of your own, including the thinking process:]
        """
    def sdpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        success: float = ...,
        show_success: bool = ...,
        beta: float = ...,
        top_k: int = ...,
        teacher: Literal['policy', 'start'] = ...,
        template: str = ...,
        success_template: str = ...,
        feedback_template: str = ...,
        on_reward_error: Literal['drop', 'zero', 'stop'] = ...,
        reward_timeout: float | None = ...,
    ) -> MethodPiece: """Self-distillation policy optimization: learn from what is said of one's own attempts.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Prompts in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            group_size: Attempts at each prompt. [default: 8]
            max_tokens: Longest reply in tokens; a reply that is cut there is learned from as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            success: The reward from which on an attempt has succeeded. [default: 1.0]
            show_success: Whether the teacher of an attempt is shown another one that succeeded. [default: True]
            beta: Which divergence: 1 is the reverse KL of the paper, 0 the forward KL, in between a
        Jensen-Shannon. [default: 1.0]
            top_k: How many of the teacher's likeliest tokens are told apart at each position; all others
        count as one. [default: 20]
            teacher: Who is shown the feedback: the policy as it is, or as the stage began. [default: policy]
            template: What the teacher reads, with {question}, {success} and {feedback}; what there is not is
        left out. [default: {question}{success}{feedback}

        Correctly solve the original question.]
            success_template: How an attempt that succeeded is told, with {success}. [default:

        Correct solution:

        {success}]
            feedback_template: How the reward's words are told, with {feedback}. [default:

        The following is feedback from your unsuccessful earlier attempt:

        {feedback}]
            on_reward_error: A reward that raises or takes too long: drop leaves the attempt out, zero gives it 0,
        stop ends the stage. [default: drop]
            reward_timeout: Seconds that a reward may take for the attempts at a prompt; by default no limit.
        """
    def self_play(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        updates_per_batch: int = ...,
        max_staleness: int = ...,
        zero_variance_groups: Literal['drop', 'replace'] = ...,
        max_replacements: int = ...,
        retries: int = ...,
        show_every: int | None = ...,
        group_size: int = ...,
        max_tokens: int = ...,
        max_turns: int = ...,
        temperature: float = ...,
        overlong: Literal['keep', 'mask', 'penalize'] = ...,
        overlong_buffer: int = ...,
        overlong_penalty: float = ...,
        reference: Mapping[str, Any] | None = ...,
        on_reward_error: Literal['drop', 'zero', 'stop'] = ...,
        reward_timeout: float | None = ...,
        observation_weight: float = ...,
        entropy_bonus: float = ...,
        top_entropy: float | None = ...,
        importance_weights: Literal['token_truncate', 'token_mask', 'sequence_truncate', 'sequence_mask'] | None = ...,
        importance_cap: float = ...,
        importance_floor: float = ...,
        behaviour_logprobs: Literal['auto', 'sampled', 'recomputed'] = ...,
        off_policy_mask: float | None = ...,
        kl_beta: float = ...,
        kl_in: Literal['advantage', 'loss'] = ...,
        kl_estimator: Literal['k1', 'k3'] | None = ...,
        advantage: Literal['group_mean', 'group_norm', 'rloo', 'dr_grpo', 'reinforce_pp', 'reinforce_pp_baseline', 'maxrl', 'gpg', 'opo', 'remax', 'pass_at_k', 'gdpo'] = ...,
        loss: Literal['importance_sampling', 'ppo', 'cispo', 'dro', 'gspo', 'sapo', 'gmpo', 'vespo'] = ...,
        length_norm: Literal['sequence', 'token', 'constant'] | None = ...,
        clip_low: float | None = ...,
        clip_high: float | None = ...,
        delta: float | None = ...,
        pass_k: int = ...,
        dro_beta: float = ...,
        sapo_positive: float = ...,
        sapo_negative: float = ...,
        flat_groups: Literal['drop', 'replace'] = ...,
    ) -> MethodPiece: """Self-play: one policy takes both seats of a game and learns from who wins.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: constant]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Groups in one batch of rollouts. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many optimizer steps, whatever `epochs` says.
            updates_per_batch: Optimizer steps on a batch of rollouts, each on an equal share of its groups; from the second
        on the data are of a slightly older policy, which `loss: ppo` and the like bound. [default: 1]
            max_staleness: Batches that the sampling policy may lie behind: above 0, sampling and training overlap. [default: 0]
            zero_variance_groups: A group whose rewards are all the same: drop goes on without it (an advantage relative to the
        group is 0 there; reinforce_pp, relative to the batch, still learns of it), replace samples
        another prompt in its place (dynamic sampling, DAPO). [default: drop]
            max_replacements: For zero_variance_groups: replace, how many other prompts are tried in one place. [default: 3]
            retries: How often a group that could not be sampled is tried again before the stage fails; in an
        environment also how often an episode in which it raised is begun again, on its own. [default: 2]
            show_every: Steps between rollouts that are shown in MLflow; by default about eight times a stage.
            group_size: Replies to each prompt, which are compared with each other; 1 is for an advantage that
        compares the whole batch. [default: 8]
            max_tokens: Longest reply in tokens. [default: 16]
            max_turns: In an environment: replies in one episode; one that goes on is cut there. [default: 16]
            temperature: Of sampling; at 1 the policy that is trained is the one that samples. At any other the ratio
        p/q needs log q of what was sampled from, and an engine that gives log p instead is refused. [default: 1.0]
            overlong: A reply that is cut at max_tokens: kept as it was rewarded, masked out of the loss (its
        reward still counts in the baseline), or penalized. [default: keep]
            overlong_buffer: For overlong: penalize, the penalty grows over this many tokens before max_tokens. [default: 0]
            overlong_penalty: For overlong: penalize, what is taken off the reward of a reply that is cut. [default: 1.0]
            reference: The fixed reference; by default where the stage starts. If given, the divergence from it is
        measured even where it costs nothing.
            on_reward_error: A reward, or an environment, that raises or takes too long: drop leaves the reply (or the
        episode) out of its group, zero counts it as 0, stop ends the stage. [default: drop]
            reward_timeout: Seconds that a reward may take for a group of replies, and an environment to begin an episode
        or to answer a reply; by default no limit.
            observation_weight: In environments: the weight of a cross-entropy loss on what was answered between the policy's
        replies, lambda of ECHO (arXiv 2605.24517). Takes a second pass; turns that are read alone
        (`fresh`) have no answers to learn. [default: 0.0]
            entropy_bonus: What a nat of the policy's entropy adds, in units of the advantage: -log q of each token less
        the mean of its group, times this. A group whose rewards are all the same has none. [default: 0.0]
            top_entropy: Learn from this share of a batch's tokens alone, those at which the policy was least certain,
        as 0.2: Wang et al. 2025, arXiv 2506.01939. Takes a prefill of each reply.
            importance_weights: What the loss of a token is multiplied by where another policy wrote it: w = p_old/q, with
        p_old the policy as the batch began, which reads each reply again, and q the one that sampled;
        the ratio of the loss is p/p_old then. token: of each token; sequence: the product over the
        reply. truncate: no more than importance_cap; mask: 0 above it. By default nothing is
        multiplied, and the ratio of the loss is p/q.
            importance_cap: For importance_weights: the largest that is taken as it is. [default: 3.0]
            importance_floor: For importance_weights: the smallest; below it truncate takes this, and mask 0. [default: 0.0]
            behaviour_logprobs: log q of the sampling policy: sampled, as the server tells it with a sample; recomputed, as
        the same weights read it afterwards, one prefill of each reply, so that ratios and KL compare
        like with like; auto recomputes where the two are more than 0.03 nats a token apart (root mean
        square) in the stage's first groups, and takes the embedded engine's as they are; with
        importance_weights, which see to the difference, auto is sampled. [default: auto]
            off_policy_mask: Leave out replies (of rewarded steps, the tokens) that are worse than their group and of
        which log q/p is more than this, in nats, the mean of the reply's tokens: DeepSeek-V3.2, arXiv
        2512.02556. Takes a second pass.
            kl_beta: What a nat of divergence from the reference costs, in units of the advantage. [default: 0.0]
            kl_in: Where the cost enters. advantage: kl_beta log q/p_ref is taken off the advantage of each
        token, after rewards were compared; every engine can do that. loss: kl_beta k3 is added to each
        token's loss, as TRL and DeepSeek do, which takes a second pass of the engine. [default: advantage]
            kl_estimator: Of a token's divergence: k1, log q/p_ref, the default in the advantage; k3,
        p_ref/q - 1 - log p_ref/q, never negative and the only one in the loss.
            advantage: From the rewards of a seat to advantages: group_mean: r - mean(r), the group's mean as the baseline of REINFORCE; group_norm: (r - mean(r)) / (std(r) + 1e-6), GRPO; rloo: r - mean of the other G - 1 rewards, REINFORCE leave-one-out; dr_grpo: r - mean(r) with a constant length normalization, Dr. GRPO; reinforce_pp: (r - mean) / (std + 1e-6) over the whole batch, REINFORCE++; reinforce_pp_baseline: (r - mean of the group) / (std of those of the batch + 1e-6), REINFORCE++-baseline; maxrl: (r - mean(r)) / (mean(r) + 1e-6), maximum likelihood RL; gpg: (r - mean(r)) B / (B - M) for B groups of which M do not vary, GPG; opo: r - sum(l r) / sum(l) with l the lengths, the baseline of least variance, OPO; remax: r - the reward of the greedy reply to the same prompt, which is sampled too, ReMax; pass_at_k: what r raises the best of pass_k replies by, mean over all sets of pass_k - 1 others; gdpo: each reward normalized in its group, their weighted sum then over the batch, GDPO. [default: group_mean]
            loss: The surrogate, of the ratio rho = p/q: importance_sampling: -rho A, no clipping; ppo: -min(rho A, clip(rho) A); cispo: -clip(rho) A log p, the clipped ratio a constant weight of the token's gradient; dro: -(A log p - beta/2 (log rho)^2); gspo: -min(s A, clip(s) A) with s = exp(mean log rho), the ratio of the sequence; sapo: -(4/tau) sigmoid(tau (rho - 1)) A, a soft gate in the place of a clip; gmpo: -exp(mean of clipped log rho) A, the geometric mean of the tokens' ratios; vespo: -phi(w) A log p with phi(w) = w^k e^(lambda (1 - w)), w the ratio of the sequence. [default: ppo]
            length_norm: What a token weighs: sequence (replies count the same), token (tokens do), constant
        (max_tokens divides all); by default what the paper of the advantage does.
            clip_low: Smallest ratio p/q that is not clipped; by default 0.8 for ppo, 0 for cispo, 0.9997 for gspo, 0.67032 for gmpo.
            clip_high: Largest ratio p/q that is not clipped; by default 1.2 for ppo, 4 for cispo, 1.0004 for gspo, 1.49182 for gmpo.
            delta: For loss ppo: the largest ratio p/q of a reply that is worse than its group, whose gradient
        is otherwise not clipped; above clip_high. Takes a second pass of the engine.
            pass_k: For advantage pass_at_k: of how many replies the best counts. [default: 4]
            dro_beta: For loss dro: the pull towards the policy that sampled. [default: 0.05]
            sapo_positive: For loss sapo: how soon its gate closes where the advantage is positive. [default: 1.0]
            sapo_negative: For loss sapo: how soon it closes elsewhere. [default: 1.05]
            flat_groups: The old name of zero_variance_groups. [default: drop]
        """
    def sft(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        loss: Literal['nll', 'dft'] = ...,
        average: Literal['tokens', 'turns', 'examples'] = ...,
        tool_weight: float = ...,
        train_on: Literal['last', 'all'] = ...,
    ) -> MethodPiece: """Supervised fine-tuning: imitate what the assistant said in example conversations.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Examples in one optimizer step. [default: 32]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            loss: nll: -log p; dft: -p log p with no gradient through p, which heeds an unlikely token less
        the less likely it is, as noise mostly is (dynamic fine-tuning, arXiv 2508.05629). Both take
        one pass. [default: nll]
            average: What counts the same in a batch: tokens (a long answer more than a short one, as in TRL),
        turns that are learned, or whole examples, however they are packed or cut. [default: tokens]
            tool_weight: What a token that a tool answered weighs beside one of the assistant's: 0.1, say, learns
        to foresee what calls do (as ECHO, arXiv 2605.24517). Only answers before what is learned
        last; a message's own `weight` in the data goes before. [default: 0.0]
            train_on: Learn a conversation's last assistant message, or all of them. [default: last]
        """
    def simpo(
        self,
        *,
        learning_rate: float | Literal['auto'] = ...,
        schedule: Literal['constant', 'linear', 'cosine'] = ...,
        warmup_steps: int = ...,
        weight_decay: float = ...,
        grad_clip: float = ...,
        adam_beta1: float = ...,
        adam_beta2: float = ...,
        save_every: int = ...,
        save_minutes: float = ...,
        token_budget: int | None = ...,
        batch_size: int = ...,
        epochs: int = ...,
        shuffle: bool = ...,
        max_steps: int | None = ...,
        max_length: int = ...,
        truncate: bool = ...,
        beta: float = ...,
        gamma: float = ...,
        nll_weight: float = ...,
    ) -> MethodPiece: """Simple preference optimization: make the chosen reply likelier per token, by a margin.

        Args:
            learning_rate: Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
        the model's hidden size and the method's family. LoRA wants about ten times that of full
        fine-tuning. [default: auto]
            schedule: How the learning rate falls to zero after the warm-up; constant keeps it. [default: linear]
            warmup_steps: Steps over which the learning rate rises from zero. [default: 0]
            weight_decay: Decoupled weight decay (AdamW). [default: 0.0]
            grad_clip: Largest norm of the gradient; 0 does not clip. [default: 1.0]
            adam_beta1: Decay of Adam's first moment. [default: 0.9]
            adam_beta2: Decay of Adam's second moment. [default: 0.95]
            save_every: Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
        what `save_minutes` asks for. [default: 50]
            save_minutes: Minutes after which one is saved however few steps that were; 0 goes by steps alone. [default: 10.0]
            token_budget: Stop after the step with which the tokens that were trained on, and those that were written
        to be trained on, come to this. What a reference, teacher or judge only reads is not counted.
            batch_size: Pairs in one optimizer step. [default: 16]
            epochs: Passes over the data, each in an order of its own. [default: 1]
            shuffle: Draw that order by the seed; otherwise it is the data's, as a curriculum wants it. [default: True]
            max_steps: Stop after this many steps, whatever `epochs` says.
            max_length: Longest example in tokens. [default: 2048]
            truncate: Cut longer examples at `max_length`; otherwise they are an error that names the record. [default: False]
            beta: Scale of the reward; the paper takes 2 to 10. [default: 2.0]
            gamma: The margin to win by, in units of the reward; the paper takes 0.3 to 1.6. [default: 0.5]
            nll_weight: Weight of imitating the chosen reply (nats per token); 1 is CPO-SimPO. [default: 0.0]
        """
    def teacher_samples(
        self,
        *,
        batch_size: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        teacher: Mapping[str, Any] | None = ...,
        system: str | None = ...,
        samples: int = ...,
        best: int | None = ...,
        min_reward: float | None = ...,
    ) -> MethodPiece: """Makes conversations of prompts and a teacher's answers, all of them or the rewarded ones.

        Args:
            batch_size: Prompts in a batch, the unit in which an interrupted stage goes on. [default: 64]
            max_tokens: Longest reply in tokens; one that is cut there is left out, and counted.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: Of the replies; 0 takes the likeliest token each time. [default: 1.0]
            teacher: Who answers; the stage's own start where not given.
            system: Instructions that the teacher reads as a system message; they are left out of what it
        leaves.
            samples: Answers to each prompt. [default: 1]
            best: Keep this many answers to each prompt, those with the highest reward.
            min_reward: Keep only answers whose reward is at least this.
        """

method: _Methods

class _Rewards:
    def exact_match(
        self,
        *,
        weight: float = ...,
        extract: Literal['whole', 'number', 'hashes', 'boxed'] = ...,
        ignore_case: bool = ...,
    ) -> RewardPiece: """1 where the reply, or the answer extracted from it, equals the reference; else 0.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            extract: What of the reply is compared: whole, the last number, after hashes (####), boxed. [default: whole]
            ignore_case: Whether capital letters do not matter. [default: False]
        """
    def function(
        self,
        *,
        call: str,
        weight: float = ...,
        feedback: str | None = ...,
        arguments: Mapping[str, Any] = ...,
        timeout: float | None = ...,
    ) -> RewardPiece: """What a function of your own says: `{use: function, call: "my_rewards:score"}`.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            call: The function, as module:function.
            feedback: A function of one sample that says in words what is wrong with it, as module:function.
            arguments: Further arguments of the function, by name.
            timeout: Seconds that one call may take, and an `async` function for all replies to a prompt; one
        that takes longer raises. By default no limit.
        """
    def json_schema(
        self,
        *,
        weight: float = ...,
        path: str | Path | None = ...,
        inline: Mapping[str, Any] | None = ...,
        parses: float = ...,
    ) -> RewardPiece: """1 where the reply is JSON that a JSON Schema accepts; else 0.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            path: A file with the JSON Schema.
            inline: The JSON Schema itself, in place of a path.
            parses: What a reply is worth that is JSON and not of the form. [default: 0.0]
        """
    def judge(
        self,
        *,
        weight: float = ...,
        judge: Mapping[str, Any] | None = ...,
        endpoint: Mapping[str, Any] | None = ...,
        score: Literal['logits', 'text'] = ...,
        max_tokens: int = ...,
        retries: int = ...,
        cache: bool = ...,
        question: str = ...,
    ) -> RewardPiece: """A judge model's yes to a question about the reply: its probability, or 1 and 0 from text.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            judge: The judge's weights, as {stage: rm} or {model: ptl/tiny}.
            endpoint: A judge behind an OpenAI-compatible endpoint, in place of `judge`.
            score: Read the judge's log-odds of the two verdicts, or let it write and find the verdict. [default: logits]
            max_tokens: Longest text of the judge. [default: 256]
            retries: How often a text without a verdict is asked for again before it counts as missing. [default: 2]
            cache: Keep verdicts on disk, so that a question is asked once. [default: True]
            question: What the judge is asked, with {prompt}, {reply} and {answer}; it says yes or no. [default: Request: {prompt}
        Reply: {reply}
        Is this a good reply, yes or no?]
        """
    def length(
        self,
        *,
        weight: float = ...,
        unit: Literal['words', 'characters'] = ...,
        least: int = ...,
        most: int | None = ...,
        slack: int = ...,
    ) -> RewardPiece: """1 where the length of the reply is within bounds, falling to 0 outside of them.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            unit: What is counted. [default: words]
            least: The shortest reply that scores 1. [default: 0]
            most: The longest reply that scores 1; by default there is none.
            slack: How far outside of the bounds the score has fallen to 0, in a straight line. [default: 0]
        """
    def numeric(
        self,
        *,
        weight: float = ...,
        extract: Literal['auto', 'number', 'hashes', 'boxed', 'whole'] = ...,
        parser: Literal['builtin', 'math_verify'] = ...,
        relative: float = ...,
        absolute: float = ...,
    ) -> RewardPiece: """1 where the number that the reply comes to is the reference, within a tolerance; else 0.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            extract: Where the number stands: auto (see above), or that alone. [default: auto]
            parser: What reads the numbers: builtin, or Hugging Face's Math-Verify, which reads expressions
        (`\\sqrt{2}/2`) and knows no tolerance; it comes with `posttrain-recipes[math]`. [default: builtin]
            relative: How far it may be off, as a share of the reference. [default: 1e-06]
            absolute: How far it may be off, in its own unit. [default: 0.0]
        """
    def pairwise(
        self,
        *,
        weight: float = ...,
        judge: Mapping[str, Any] | None = ...,
        endpoint: Mapping[str, Any] | None = ...,
        score: Literal['logits', 'text'] = ...,
        max_tokens: int = ...,
        retries: int = ...,
        cache: bool = ...,
        question: str = ...,
        against: Literal['group', 'answer'] = ...,
    ) -> RewardPiece: """Share of comparisons that a reply wins by a judge, against its group or the reference.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            judge: The judge's weights, as {stage: rm} or {model: ptl/tiny}.
            endpoint: A judge behind an OpenAI-compatible endpoint, in place of `judge`.
            score: Read the judge's log-odds of the two verdicts, or let it write and find the verdict. [default: logits]
            max_tokens: Longest text of the judge. [default: 256]
            retries: How often a text without a verdict is asked for again before it counts as missing. [default: 2]
            cache: Keep verdicts on disk, so that a question is asked once. [default: True]
            question: What the judge is asked, with {prompt}, {a} and {b}; it answers A or B. [default: Request: {prompt}
        Reply A: {a}
        Reply B: {b}
        Which reply is better, A or B?]
            against: Compare with the other replies to the prompt, or with the prompt's answer. [default: group]
        """
    def python_tests(
        self,
        *,
        weight: float = ...,
        tests: str = ...,
        score: Literal['all', 'share'] = ...,
        seconds: float = ...,
        memory_mb: int = ...,
    ) -> RewardPiece: """1 where the Python code of the reply passes the prompt's tests; else 0.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            tests: The prompt's field with the tests: Python code as `assert f(1) == 2`, or a list of it. [default: tests]
            score: 1 where all tests pass, or the share that does. [default: all]
            seconds: How long a reply's code and its tests may run. [default: 5.0]
            memory_mb: Address space in MiB that they may use. [default: 256]
        """
    def regex(
        self,
        *,
        pattern: str,
        weight: float = ...,
        match: Literal['anywhere', 'whole'] = ...,
        reads: Literal['text', 'raw'] = ...,
        ignore_case: bool = ...,
    ) -> RewardPiece: """1 where the reply matches a regular expression; else 0.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            pattern: The expression, in Python's syntax; a dot matches line ends too.
            match: Whether it has to match the whole reply, or some part of it. [default: whole]
            reads: `text`: the reply without special tokens and the white space around it; `raw`: as the
        model wrote it, up to the token that ends it. [default: text]
            ignore_case: Whether capital letters do not matter. [default: False]
        """
    def reward_model(
        self,
        *,
        model: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        weight: float = ...,
        combine: Literal['mean', 'worst', 'uncertainty'] = ...,
        penalty: float = ...,
    ) -> RewardPiece: """The learned reward of the reply: log-odds, in nats, of a reward model's yes against no.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            model: The reward model, as {stage: rm}: a stage with the method reward_model. A list of them is
        an ensemble.
            combine: Of an ensemble's scores of a reply: their mean; worst, the least of them; or uncertainty,
        the mean less penalty times their variance. [default: mean]
            penalty: For combine: uncertainty, what a squared nat of variance costs. [default: 1.0]
        """
    def rubric(
        self,
        *,
        weight: float = ...,
        judge: Mapping[str, Any] | None = ...,
        endpoint: Mapping[str, Any] | None = ...,
        score: Literal['logits', 'text'] = ...,
        max_tokens: int = ...,
        retries: int = ...,
        cache: bool = ...,
        criteria: Sequence[Mapping[str, Any] | str] = ...,
        field: str | None = ...,
        question: str = ...,
    ) -> RewardPiece: """A weighted sum of a judge's answers to several criteria, over the sum of positive weights.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            judge: The judge's weights, as {stage: rm} or {model: ptl/tiny}.
            endpoint: A judge behind an OpenAI-compatible endpoint, in place of `judge`.
            score: Read the judge's log-odds of the two verdicts, or let it write and find the verdict. [default: logits]
            max_tokens: Longest text of the judge. [default: 256]
            retries: How often a text without a verdict is asked for again before it counts as missing. [default: 2]
            cache: Keep verdicts on disk, so that a question is asked once. [default: True]
            criteria: What is asked of every reply: sentences, or {text, weight}.
            field: A field of the prompts with criteria of their own, beside these.
            question: What the judge is asked, with {criterion}, {prompt}, {reply} and {answer}. [default: Rule: {criterion}.
        Reply: {reply}
        Yes or no?]
        """
    def steps(
        self,
        *,
        of: RewardPiece,
        weight: float = ...,
        ends_with: str = ...,
    ) -> RewardPiece: """The mean over a reply's steps of another reward, which is asked of the reply up to each.

        Args:
            weight: The factor of this reward in the sum. [default: 1.0]
            of: The reward that marks a step, from all that was said up to its end.
            ends_with: What ends a step; what follows the last one is a step too. [default:
        ]
        """

reward: _Rewards

class _Evals:
    def episodes(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        max_turns: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        retries: int = ...,
    ) -> EvalPiece: """Mean return of the first seat over episodes, one a task, and what else the episodes tell.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            max_turns: Replies in one episode; one that goes on is cut there. [default: 16]
            max_tokens: Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            retries: How often an episode in which the environment raised is begun again before the eval
        fails. [default: 2]
        """
    def exact_match(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        samples: int = ...,
        extract: Literal['whole', 'number', 'hashes', 'boxed'] = ...,
        ignore_case: bool = ...,
    ) -> EvalPiece: """Share of prompts whose reply, or the answer extracted from it, equals the reference.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            max_tokens: Longest reply in tokens; a reply that is cut there is wrong unless it matches.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            samples: Replies to each prompt. With several, as {samples: 8, temperature: 1}, exact_match is the
        share of all of them, and pass_at_8 that of prompts of whose 8 replies one is right. [default: 1]
            extract: What of the reply is compared: whole, the last number, after hashes (####), boxed. [default: whole]
            ignore_case: Whether capital letters do not matter. [default: False]
        """
    def generations(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        count: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
    ) -> EvalPiece: """Samples replies for people to read, the same prompts before and after training.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            count: How many prompts, the first of the data. [default: 8]
            max_tokens: Longest reply in tokens. [default: 128]
            temperature: 0 takes the likeliest token each time. [default: 0.7]
        """
    def gsm8k(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        num_fewshot: int = ...,
        fewshot: str | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        instruction: str = ...,
    ) -> EvalPiece: """GSM8K: share of grade-school word problems whose final number is right.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            num_fewshot: Solved examples before each question. [default: 0]
            fewshot: A file of examples, of which the first are taken; by default the hub's of the suite.
            max_tokens: Longest reply in tokens. [default: 512]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            instruction: Stands after the question, where there are no examples; empty: the question alone. [default: Please reason step by step, and put your final answer within \\boxed{}.]
        """
    def humaneval(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        samples: int = ...,
        seconds: float = ...,
        memory_mb: int = ...,
    ) -> EvalPiece: """HumanEval: share of Python functions that the model completes so that the tests pass.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            max_tokens: Longest reply in tokens. [default: 512]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            samples: Programs for each problem; with 10 or 100 of them there is pass@10 or pass@100 too. [default: 1]
            seconds: How long a program and its tests may run. [default: 5.0]
            memory_mb: Address space in MiB that they may use. [default: 256]
        """
    def ifeval(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
    ) -> EvalPiece: """IFEval: share of prompts whose instructions a reply follows, as a program checks.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            max_tokens: Longest reply in tokens. [default: 1280]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
        """
    def mbpp(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: Literal['full', 'sanitized'] | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        num_fewshot: int = ...,
        fewshot: str | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        samples: int = ...,
        seconds: float = ...,
        memory_mb: int = ...,
    ) -> EvalPiece: """MBPP: share of basic Python problems whose tests the model's program passes.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set: full (500 test problems) or sanitized (257); by default full.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            num_fewshot: Solved examples before each question. [default: 0]
            fewshot: A file of examples, of which the first are taken; by default the hub's of the suite.
            max_tokens: Longest reply in tokens. [default: 512]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            samples: Programs for each problem; with 10 or 100 of them there is pass@10 or pass@100 too. [default: 1]
            seconds: How long a program and its tests may run. [default: 5.0]
            memory_mb: Address space in MiB that they may use. [default: 256]
        """
    def mean_reward(
        self,
        *,
        reward: RewardPiece,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        max_tokens: int = ...,
        temperature: float = ...,
    ) -> EvalPiece: """Mean of a reward over one sampled reply to each prompt.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            reward: The reward, with its own options.
            max_tokens: Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: 0 takes the likeliest token each time. [default: 1.0]
        """
    def mmlu(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        num_fewshot: int = ...,
        fewshot: str | None = ...,
        score: Literal['letters', 'texts'] = ...,
    ) -> EvalPiece: """MMLU: share of questions of 57 subjects whose right letter the model finds the likeliest.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            num_fewshot: Solved examples before each question. [default: 0]
            fewshot: A file of examples, of which the first are taken; by default the hub's of the suite.
            score: What the model is to say: the choice's letter, all of them shown (as in MMLU), or its
        text, none shown (as in ARC and HellaSwag). [default: letters]
        """
    def multiple_choice(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        num_fewshot: int = ...,
        fewshot: str | None = ...,
        score: Literal['letters', 'texts'] = ...,
    ) -> EvalPiece: """Share of questions whose right choice the model finds the likeliest; nothing is sampled.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            num_fewshot: Solved examples before each question. [default: 0]
            fewshot: A file of examples, of which the first are taken; by default the hub's of the suite.
            score: What the model is to say: the choice's letter, all of them shown (as in MMLU), or its
        text, none shown (as in ARC and HellaSwag). [default: letters]
        """
    def nll(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        train_on: Literal['last', 'all'] = ...,
        max_length: int = ...,
    ) -> EvalPiece: """Mean negative log-likelihood of a token that the assistant said, in nats; lower is better.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            train_on: Score a conversation's last assistant message, or all of them. [default: last]
            max_length: Longer conversations are cut at this many tokens. [default: 2048]
        """
    def preference_accuracy(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        max_length: int = ...,
    ) -> EvalPiece: """Share of pairs whose chosen reply the model finds likelier, per token; a tie is half.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            max_length: Longer conversations are cut at this many tokens. [default: 2048]
        """
    def reward_accuracy(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
    ) -> EvalPiece: """Share of pairs whose chosen reply gets the higher reward from the weights; a tie is half.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
        """
    def safety(
        self,
        *,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        path: str | Path | None = ...,
        subset: str | None = ...,
        split: str | None = ...,
        revision: str | None = ...,
        limit: int | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        all_are: Literal['harmful', 'harmless'] | None = ...,
        refusal: RewardPiece | None = ...,
    ) -> EvalPiece: """Safety: share of harmful prompts that are refused, and of harmless ones that are refused too.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            path: A file in the published form, relative to the recipe, or another data set of the hub.
            subset: Of the hub's data set, where it has several.
            split: Of the hub's data set.
            revision: Of the hub's data set: a branch, a tag or a commit.
            limit: Use at most this many records, the first ones.
            max_tokens: Longest reply in tokens; a refusal is told by its beginning. [default: 128]
            temperature: 0 takes the likeliest token each time. [default: 0.0]
            all_are: What all prompts are, where no label says it.
            refusal: A reward that is above 0.5 where a reply refuses; by default the rule.
        """
    def win_rate(
        self,
        *,
        reward: RewardPiece,
        name: str = ...,
        dataset: DatasetPiece = ...,
        every: int = ...,
        against: Mapping[str, Any] = ...,
        max_tokens: int = ...,
        temperature: float = ...,
    ) -> EvalPiece: """Share of prompts where a reward prefers the weights' reply to that of other weights.

        Args:
            name: What tables and metrics call it, and what other stages refer to; by default the plugin's name.
            dataset: What to evaluate on; by default the stage's own test split.
            every: Run it during training too, each time so many steps are done.
            against: The other weights, such as {stage: sft}. [default: {'stage': 'base', 'model': None, 'checkpoint': None, 'renderer': None}]
            reward: What decides, with its own options: a rule, a judge, a reward model.
            max_tokens: Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell. [default: 256]
            temperature: 0 takes the likeliest token each time. [default: 1.0]
        """

eval: _Evals

class _Engines:
    def local(
        self,
        *,
        dtype: Literal['auto', 'float32', 'bfloat16'] = ...,
        evals_beside: int = ...,
    ) -> EnginePiece: """The embedded engine: trains on this machine, starts by itself and ends with the run.

        Args:
            dtype: The numbers that base models are held and multiplied in; adapters, their optimizer and
        the losses are float32 whatever it is. `auto` takes bfloat16 on a GPU, and on a CPU for a
        model of 50 million parameters or more that this machine multiplies at least 1.5 times as
        fast in it, which is measured once; else float32. [default: auto]
            evals_beside: Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins, as both would take the same cores. [default: 0]
        """
    def server(
        self,
        *,
        base_url: str,
        api_key: str = ...,
        dialect: Literal['auto', 'current', '0.25'] = ...,
        startup_timeout: float = ...,
        evals_beside: int = ...,
    ) -> EnginePiece: """Any server that speaks Tinker's protocol: `ptl serve` elsewhere, SkyRL, TuFT, ...

        Args:
            base_url: Its address, as http://host:port.
            api_key: The key that it asks for; write it as ${env:NAME}, never in plain text. [default: ${env:TINKER_API_KEY}]
            dialect: The form of the protocol that it speaks, by the SDK that it was written for. `0.25` puts
        a translator between, in this process; `auto` tells it by answers that change nothing. [default: auto]
            startup_timeout: Seconds that the first training check may take: a server may load or compile a model
        for it. [default: 300.0]
            evals_beside: Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins, as most servers would do both in turn. [default: 0]
        """
    def tinker(
        self,
        *,
        api_key: str = ...,
        base_url: str | None = ...,
        evals_beside: int = ...,
    ) -> EnginePiece: """Hosted Tinker (thinkingmachines): remote GPUs, billed by the token.

        Args:
            api_key: The key; write it as ${env:NAME}, never in plain text. [default: ${env:TINKER_API_KEY}]
            base_url: Another address of the service; by default the SDK's own.
            evals_beside: Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins. [default: 2]
        """

engine: _Engines

class _Trackers:
    def __getattr__(self, name: str) -> Callable[..., TrackerPiece]: ...

tracker: _Trackers

def recipe(
    *,
    name: str = ...,
    description: str = ...,
    model: str = ...,
    engine: EnginePiece | str = ...,
    seed: int = ...,
    lora: LoraPiece = ...,
    renderer: RendererPiece = ...,
    stages: Sequence[StagePiece | RepeatPiece | ComparePiece] = ...,
    limits: Mapping[str, Any] = ...,
    watch: Any = ...,
    on_end: Any = ...,
    trackers: Sequence[TrackerPiece | str] = ...,
    resources: ResourcesPiece = ...,
    matrix: Mapping[str, Any] = ...,
    expect: Mapping[str, str] = ...,
    presets: Mapping[str, Mapping[str, Any]] = ...,
) -> RecipePiece: """A recipe.

    Args:
        name: The recipe's name; its runs are named after it.
        description: What the recipe does or teaches.
        model: The base model: bundled (ptl/tiny, ptl/nano), a Hugging Face id or a local directory; or a version of MLflow's registry to start from (models:/NAME@ALIAS).
        engine: Where training runs: local (embedded, the default), tinker (hosted) or a compatible server. [default: local]
        seed: Seeds data order, splits, adapters and sampling. [default: 0]
        lora: The adapter that is trained.
        renderer: How conversations are rendered by the model's chat template.
        stages: What is done, in order; each starts from the one before it.
        limits: Bounds on what a run may spend, all its tries together. It stops before one is passed, keeps what it has, and goes on where it stopped once the bound is raised.
        watch: The prompts that `ptl watch` shows answered again and again while a stage trains; false: none. By default there are, unless the engine bills for tokens. It changes no result, and nothing is trained again for it.
        on_end: Told how each try of a run ended, whatever the end: a command or a webhook; false: nobody. It changes no result; one that fails is told, and fails no run.
        trackers: Plugins that hear what MLflow hears, by name or with options, as [tensorboard, {use: wandb, project: sums}]. They change no result, and what they fail at is told and fails no run.
        resources: What each stage asks of the node that it runs on; read by `ptl run --jobs ray`.
        matrix: Values to try: the recipe runs with each combination of them.
        expect: Bounds on results of each way through the recipe, as {held_out: '>= 0.8', held_out change: '> 0', forgetting: '<= 0.05'}; where one does not hold, the run exits with 3.
        presets: Named changes: `ptl run --preset NAME`; `quick` is what a bare run uses.
    """

def stage(
    *,
    name: str,
    init_from: str = ...,
    dataset: DatasetPiece = ...,
    method: MethodPiece = ...,
    reward: RewardPiece | Sequence[RewardPiece] = ...,
    eval: Sequence[EvalPiece | str] = ...,
    model: str = ...,
    keep: Mapping[str, Any] = ...,
    stop: Mapping[str, Any] = ...,
    expect: Mapping[str, str] = ...,
    seed: int = ...,
    lora: LoraPiece = ...,
    renderer: RendererPiece = ...,
    resources: ResourcesPiece = ...,
) -> StagePiece: """A stage.

    Args:
        name: The stage's name, unique in the recipe.
        init_from: Where it starts: `base`, a stage's name or a tinker:// state; by default the stage above. The optimizer starts fresh.
        dataset: What it trains on.
        method: How it trains; a stage without one only evaluates.
        reward: What scores replies, for methods that take rewards; a list is a weighted sum.
        eval: Run before and after training: evals, or names of evals above.
        model: Another base model than the recipe's; only where the stage starts from base, as a teacher's does.
        keep: Which checkpoint the stage leaves; by default its last.
        stop: Ends the stage before its last step.
        expect: Bounds on results of the stage, as {held_out: '>= 0.8', held_out change: '> 0', forgetting: '<= 0.05'}; where one does not hold, the run exits with 3.
        seed: Overrides the recipe's.
        lora: Overrides the recipe's; only where the stage starts from base.
        renderer: Overrides the recipe's.
        resources: Overrides the recipe's, key by key.
    """

def repeat(
    *,
    repeat: int,
    stages: Sequence[StagePiece | RepeatPiece | ComparePiece],
    name: str = ...,
    until: Mapping[str, str] = ...,
) -> RepeatPiece: """A loop: each round starts from what the round before left.

    Args:
        repeat: How many rounds; their stages are called NAME-1, NAME-2, ...
        name: What presets and messages call the loop.
        stages: The stages of a round.
        until: Bounds on evals of a round, as {held_out: '>= 0.9'}; once all hold, the rounds after it are left out.
    """

def compare(
    *,
    compare: Sequence[StagePiece | Mapping[str, Any]],
    name: str = ...,
    init_from: str = ...,
    seeds: Sequence[int] = ...,
    budget: Mapping[str, Any] = ...,
    eval: Sequence[Any] = ...,
) -> ComparePiece: """Branches from one start, on the same budget and seeds, with one report.

    Args:
        compare: The branches: stages, or names with 'stages:' of their own.
        name: What the report calls the comparison.
        init_from: Where every branch starts; by default the stage above.
        seeds: Every branch is run once with each.
        budget: What every branch may use, in steps, in tokens, or in both.
        eval: What the branches are judged by: added to each one's last stage.
    """

def lora(
    *,
    rank: int = ...,
    train_mlp: bool = ...,
    train_attn: bool = ...,
    train_unembed: bool = ...,
) -> LoraPiece: """The low-rank adapter that is trained (Hu et al. 2021, arXiv 2106.09685); alpha is 32.

    Args:
        rank: Rank of the adapter's matrices. [default: 16]
        train_mlp: Adapt the MLP layers. [default: True]
        train_attn: Adapt the attention layers. [default: True]
        train_unembed: Adapt the output embedding. [default: False]
    """

def renderer(
    *,
    thinking: Literal['off', 'on', 'keep'] = ...,
    template_kwargs: Mapping[str, Any] = ...,
    chat_template: str | None = ...,
) -> RendererPiece: """How conversations are rendered by a model's own chat template.

    Args:
        thinking: Whether the model is asked to reason before it replies. on: the reasoning of what is learned
    is learned too; keep: it also reads what it reasoned in earlier turns, where its template can
    show that. Records whose reasoning the template leaves out are refused. [default: off]
        template_kwargs: Further variables of the template, as {reasoning_effort: low}.
        chat_template: In place of the model's own: a Jinja file, relative to the recipe, or one of chatml, llama3,
    zephyr and alpaca. Known by what it says: a stage is trained again when the file changes.
    """

def resources(
    *,
    cpus: float = ...,
    gpus: float = ...,
    memory_gb: float = ...,
) -> ResourcesPiece: """A resources.

    Args:
        cpus: CPUs. [default: 1]
        gpus: GPUs; a part of one lets stages share it. [default: 0]
        memory_gb: Memory, in 10^9 bytes.
    """
