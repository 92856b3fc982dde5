"""What other tools call what a recipe has: TRL, axolotl, LLaMA-Factory, Unsloth, verl and
tinker-cookbook.

One table, for every hint: of a recipe's unknown key, and of `ptl explain WORD`. Names are compared
by their letters: `lora_alpha`, `lora-alpha` and `loraAlpha` are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

_SAME: Mapping[str, Sequence[str]] = {
    "learning_rate": ("lr", "peak_lr", "max_lr", "actor_lr", "base_lr", "rate"),
    "epochs": (
        "num_train_epochs",
        "num_epochs",
        "n_epochs",
        "total_epochs",
        "train_epochs",
    ),
    "max_steps": ("steps", "num_steps", "total_steps", "train_steps", "max_train_steps", "iters"),
    "batch_size": (
        *(
            "per_device_train_batch_size",
            "micro_batch_size",
            "train_batch_size",
            "global_batch_size",
        ),
        *("bs", "batchsize", "groups_per_batch", "prompts_per_step", "rollout_batch_size"),
    ),
    "max_length": (
        *("max_seq_length", "max_seq_len", "seq_len", "seq_length", "sequence_len", "cutoff_len"),
        *("model_max_length", "context_length", "max_sequence_length", "max_prompt_length"),
    ),
    "max_tokens": (
        *("max_new_tokens", "max_completion_length", "max_response_length", "response_length"),
        *("max_tokens_to_sample", "generate_max_len", "max_generation_length", "max_output_tokens"),
    ),
    "group_size": (
        *(
            "num_generations",
            "num_samples_per_prompt",
            "n_samples_per_prompt",
            "rollouts_per_example",
        ),
        *("num_return_sequences", "rollout_n", "samples_per_prompt", "generations", "n"),
    ),
    "n": ("num_generations", "num_return_sequences", "best_of", "num_samples"),
    "samples": ("n", "n_samples", "num_samples"),
    "warmup_steps": ("warmup", "num_warmup_steps", "lr_warmup_steps", "warmup_ratio"),
    "schedule": ("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule", "lr_decay_style"),
    "grad_clip": ("max_grad_norm", "gradient_clipping", "clip_grad", "grad_norm", "clip_grad_norm"),
    "kl_beta": (
        *("beta", "kl_coef", "kl_penalty_coef", "init_kl_coef", "kl_loss_coef", "kl_coeff"),
        *("kl_penalty", "adap_kl_ctrl"),
    ),
    "beta": (
        "dpo_beta",
        "pref_beta",
        "rl_beta",
        "orpo_alpha",
        "cpo_alpha",
        "kto_beta",
        "distillation_alpha",
    ),
    "clip_high": ("epsilon_high", "clip_ratio_high", "cliprange_high"),
    "delta": ("clip_ratio_c", "dual_clip"),
    "off_policy_mask": ("off_policy_mask_threshold",),
    "importance_weights": (
        *("vllm_importance_sampling_mode", "vllm_importance_sampling_correction", "tis"),
        *("rollout_is", "rollout_rs", "use_tis", "truncated_importance_sampling"),
    ),
    "importance_cap": (
        *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap", "tis_imp_ratio_cap"),
        *("rollout_is_threshold", "imp_ratio_cap"),
    ),
    "importance_floor": ("vllm_importance_sampling_clip_min", "rollout_is_threshold_lower"),
    "top_entropy": ("top_entropy_quantile",),
    "entropy_bonus": ("entropy_coef", "entropy_coeff", "ent_coef", "entropy_loss_coef"),
    "sapo_positive": ("sapo_temperature_pos",),
    "sapo_negative": ("sapo_temperature_neg",),
    "top_k": ("distillation_topk",),
    "align": ("use_uld_loss", "use_extended_uld", "cross_tokenizer"),
    "student_share": ("lmbda", "lambda", "student_data_fraction"),
    "others": ("seq_kd",),
    "template": ("reprompt_template",),
    "success_template": ("solution_template",),
    "success": ("success_reward_threshold",),
    "show_success": ("use_successful_as_teacher",),
    "divergence": ("f_divergence_type",),
    "divergence_alpha": ("f_alpha_divergence_coef",),
    "clip_low": (
        "epsilon",
        "epsilon_low",
        "clip_ratio",
        "clip_ratio_low",
        "cliprange",
        "clip_range",
    ),
    "updates_per_batch": ("num_iterations", "mu", "ppo_epochs", "num_ppo_epochs", "num_substeps"),
    "advantage": ("scale_rewards", "adv_estimator", "advantage_estimator", "advantage_type"),
    "max_staleness": ("max_steps_off_policy", "async_level", "steps_off_policy", "max_async_level"),
    "label_smoothing": ("label_smoothing_factor", "smoothing"),
    "nll_weight": ("rpo_alpha", "sft_weight", "pref_ftx", "sft_loss_weight"),
    "loss": ("loss_type", "loss_fn", "dpo_loss", "pref_loss", "policy_loss", "objective"),
    "train_on": (
        *("train_on_inputs", "completion_only_loss", "assistant_only_loss", "mask_history"),
        *("roles_to_train", "train_on_responses_only", "train_on_what"),
    ),
    "save_every": (
        "save_steps",
        "checkpoint_every",
        "save_interval",
        "saves_per_epoch",
        "save_freq",
    ),
    "every": ("eval_steps", "eval_every", "eval_interval", "test_freq"),
    "shuffle": ("shuffle_dataset", "data_seed"),
    "limit": ("max_samples", "max_train_samples", "num_examples", "num_train_samples"),
    "test_size": ("val_set_size", "val_size", "eval_ratio", "validation_split"),
    "format": ("type", "dataset_format"),
    "columns": ("field_messages", "messages_field", "prompt_key", "message_property_mappings"),
    "system": ("system_prompt", "default_system"),
    "path": ("data_files", "file", "files", "data_path", "train_file", "filename"),
    "num_fewshot": ("n_shot", "shots", "num_shots", "few_shot"),
    "question": ("rubric", "judge_prompt", "prompt_template"),
    "model": (
        *(
            "base_model",
            "model_name",
            "model_name_or_path",
            "model_id",
            "pretrained_model_name_or_path",
        ),
    ),
    "init_from": (
        *("start", "from", "start_from", "parent", "checkpoint"),
        *("adapter_name_or_path", "lora_model_dir", "warm_start"),
    ),
    "how": ("merge_method", "combination_type"),
    "of": ("adapters", "models"),
}
"""An option here, with what it is called elsewhere."""

_WIRE = "is nothing that Tinker's protocol carries: an adapter has a rank and the layers it is on"
ADAPTER: Mapping[str, str] = {
    **dict.fromkeys(("r", "lora_r", "lora_rank", "lora_dim"), "is called 'rank' here"),
    **dict.fromkeys(
        (
            *("alpha", "lora_alpha", "lora_scaling", "lora_scale", "use_rslora", "rslora"),
            *("rank_stabilized", "rank_stabilized_lora"),
        ),
        f"{_WIRE}. alpha is 32 on every engine; to scale what is learned, change learning_rate",
    ),
    **dict.fromkeys(
        ("dropout", "lora_dropout"),
        f"{_WIRE}. Against overfitting: fewer epochs, or 'keep: {{best: EVAL}}'",
    ),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern"), f"{_WIRE}: one rank for all of them, and alpha is 32"
    ),
    **dict.fromkeys(
        (
            *("dora", "use_dora", "pissa", "olora", "vera", "loftq", "loftq_config", "eva_config"),
            *("corda_config", "kasa_config", "velora_config", "lora_ga", "lora_ga_config"),
            *("monteclora_config", "arrow_config", "use_bdlora", "alora_invocation_tokens"),
            *("use_qalora", "qalora", "qalora_group_size", "init_lora_weights", "lora_init"),
            *("lora_init_scale", "lora_bias", "fan_in_fan_out", "lora_fan_in_fan_out"),
            *("lora_plus", "loraplus", "loraplus_lr_ratio", "loraplus_lr_embedding"),
            *("layer_replication", "ensure_weight_tying", "megatron_config", "megatron_core"),
        ),
        _WIRE,
    ),
    **dict.fromkeys(
        (
            *("target_modules", "modules_to_save", "lora_target", "lora_target_modules"),
            *("lora_target_linear", "lora_modules_to_save", "lora_layers", "target_parameters"),
            *("exclude_modules", "layers_to_transform", "layers_pattern", "train_embeddings"),
            *("freeze_trainable_layers", "trainable_token_indices"),
        ),
        f"{_WIRE}: train_attn, train_mlp and train_unembed choose them",
    ),
}
"""What other libraries let one say of an adapter, and what to do here."""
_IN_LORA: Mapping[str, str] = {
    **dict.fromkeys(("dim", "adapter_rank"), ADAPTER["r"]),
    **dict.fromkeys(("scaling", "scale"), ADAPTER["alpha"]),
    **dict.fromkeys(("layers", "modules", "targets"), ADAPTER["target_modules"]),
    **dict.fromkeys(("init", "bias", "runtime_config"), _WIRE),
}
"""The same of words that mean something else in other places."""

ELSEWHERE: Mapping[str, str] = {
    **{
        name: "stands in 'lora: {rank: ...}', at the top or in a stage"
        if why == ADAPTER["r"]
        else why
        for name, why in ADAPTER.items()
    },
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulation_steps", "grad_accum", "grad_acc_steps"),
        "is not needed: 'batch_size' is what one step learns from, however the engine splits it",
    ),
    **dict.fromkeys(
        ("packing", "sample_packing", "pad_to_max_length", "group_by_length", "padding"),
        "is the engine's: each example is a sequence of its own, and nothing is padded for it",
    ),
    **dict.fromkeys(
        ("bf16", "fp16", "tf32", "torch_dtype", "precision", "mixed_precision"),
        "is the engine's: 'engine: {use: local, dtype: auto}'",
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization", "quantization_bit", "qlora"),
        "is not there: no engine here trains on a quantized base",
    ),
    **dict.fromkeys(
        (
            *("deepspeed", "fsdp", "gradient_checkpointing", "flash_attention", "flash_attn"),
            *("attn_implementation", "use_vllm", "use_liger_kernel", "ddp_find_unused_parameters"),
            *("dataloader_num_workers", "device", "device_map", "num_gpus", "tensor_parallel_size"),
        ),
        "is the engine's, and no matter of a recipe",
    ),
    **dict.fromkeys(
        ("use_dft_loss", "use_dynamic_finetuning"),
        "is 'loss: dft' of the method sft",
    ),
    **dict.fromkeys(
        ("neftune_noise_alpha", "neftune", "noisy_embedding_alpha"),
        "is not to be had: Tinker's protocol has tokens and weights, and no way into embeddings",
    ),
    **dict.fromkeys(
        ("optim", "optimizer", "adam_epsilon", "adam_eps"),
        "is not to be chosen: Tinker's protocol has Adam, with 'adam_beta1' and 'weight_decay'",
    ),
    **dict.fromkeys(
        ("report_to", "wandb_project", "logging_steps", "log_every", "logging_dir", "run_name"),
        "is not needed: MLflow has every step ('ptl ui')",
    ),
    **dict.fromkeys(
        ("output_dir", "save_total_limit", "log_path", "overwrite_output_dir"),
        "is not needed: runs lie in .ptl, or where 'ptl run --home DIR' says; 'ptl gc' cleans up",
    ),
    **dict.fromkeys(
        ("adapter", "peft_type", "task_type", "finetuning_type", "use_peft", "use_lora"),
        "is not needed: every stage trains a LoRA adapter; 'lora: {rank: 32}' at the top sizes it",
    ),
    **dict.fromkeys(
        ("reward_funcs", "reward_function", "reward_fn", "reward_model_path", "reward_weights"),
        "is the stage's 'reward:', beside 'method:'",
    ),
    **dict.fromkeys(
        ("template", "chat_template", "tokenizer_name", "renderer_name"),
        "is the recipe's 'renderer: {chat_template: ...}', at the top or in a stage",
    ),
    **dict.fromkeys(
        (
            "eval_strategy",
            "evaluation_strategy",
            "load_best_model_at_end",
            "early_stopping_patience",
        ),
        "stands at the stage: 'eval: [{use: ..., every: 20}]', 'keep: {best: EVAL}', 'stop:'",
    ),
    **dict.fromkeys(
        ("resume_from_checkpoint", "load_checkpoint_path", "auto_resume"),
        "is not needed: the same command goes on; 'init_from:' of a stage names other weights",
    ),
}
"""What is no option here, with where it is or why it is not."""

_TO: dict[str, list[str]] = {}
for _option, _names in _SAME.items():
    for _name in _names:
        _TO.setdefault(_name, []).append(_option)


def _joined(name: str) -> str:
    """A name without what words are joined by: `loraAlpha` and `lora_alpha` are the same."""
    return plain(name).replace("_", "")


def plain(name: str) -> str:
    """A name as the table has it: `num-train-epochs` and `Num_Train_Epochs` are the same."""
    return name.strip().lower().replace("-", "_").replace(".", "_")


_SPELT = {_joined(name): name for name in (*_TO, *ELSEWHERE, *ADAPTER, *_IN_LORA)}
"""By its letters alone, each name as its table has it."""


def _spelt(name: str) -> str:
    return _SPELT.get(_joined(name), plain(name))


def names() -> Collection[str]:
    """Every name that an option here has elsewhere."""
    return _TO.keys()


def options(name: str) -> Sequence[str]:
    """What that may be called here; empty where the table does not have it."""
    return _TO.get(_spelt(name), ())


def elsewhere(name: str) -> str | None:
    """Where something that is no option here is, or why it is not, in words that follow it."""
    return ELSEWHERE.get(_spelt(name))


def of_adapter(name: str) -> str | None:
    """The same of a key of `lora:`."""
    spelt = _spelt(name)
    return ADAPTER.get(spelt) or _IN_LORA.get(spelt)


def hint(name: str, known: Collection[str]) -> str | None:
    """What to do about an unknown key: `'lr' is called 'learning_rate' here`.

    Args:
        known: the keys that may stand there.
    """
    here = [option for option in options(name) if option in known]
    if here:
        return f"'{name}' is called '{here[0]}' here"
    if plain(name) in known:
        return f"write '{plain(name)}'"
    why = elsewhere(name)
    return f"'{name}' {why}" if why else None
