"""What a TRL trainer reads of itself, so that its losses can be asked without training."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch


class Trainer:
    """Stands for a TRL trainer: what its loss reads, all else off."""

    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather_for_metrics=lambda x: x,
        gather=lambda x: x,
        pad_across_processes=lambda x, **more: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
        process_index=0,
        parallelism_config=None,
    )
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    args = SimpleNamespace(center_rewards_coefficient=None, gradient_checkpointing_kwargs=None)
    ld_alpha = None
    precompute_ref_logps = True
    f_divergence_type = "reverse_kl"
    loss_weights = [1.0]
    label_smoothing = 0.0
    aux_loss_enabled = use_weighting = False
    alpha = 0.0
    _tp_size = 1
    _total_train_tokens = 0

    def __init__(self, **options: Any) -> None:
        self._metrics: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        vars(self).update(options)
