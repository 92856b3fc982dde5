"""Servers that speak an earlier form of Tinker's wire protocol, and the translator for them.

The SDK speaks one form. Servers that were written for an SDK of the 0.25 era (SkyRL, TuFT) speak an
earlier one: a translator on the loopback interface, in this process, stands between the two. What
it cannot translate it refuses by name.

    spoken = told(address, key)                  # "current", "0.25", or None: no telling
    with translated(address, key) as loopback:
        tinker.ServiceClient(base_url=loopback.base_url, api_key=loopback.api_key)

From the door inwards: `loopback` (a thread with a token), `routes`, `translator` (what has to be
remembered), `requests` (JSON), `passes` (protobuf), `upstream` (the server). `asking` tells which
form a server speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from posttrain_recipes.dialects.asking import told
from posttrain_recipes.dialects.loopback import Loopback, translated

__all__ = ["LACKS", "OPEN", "Dialect", "Loopback", "told", "translated"]

Dialect = Literal["current", "0.25"]
"""A form of the protocol, by the SDK of which servers speak it."""

LACKS: Mapping[str, str] = {
    "optimizer:grad_clip": "servers of the dialect 0.25 take a bound on the gradient's norm "
    "without effect; set 'grad_clip: 0'",
    "optimizer:betas": "servers of the dialect 0.25 may take Adam's decays without effect; leave "
    "adam_beta1 and adam_beta2 as they are",
    "lora:parts": "servers of the dialect 0.25 take the switches of LoRA without effect, and adapt "
    "attention and MLP; leave them as they are",
    "targets:several": "servers of the dialect 0.25 drop the shape of targets, and would train on "
    "something else",
    "optimizer:dimuon": "the dialect 0.25 has no optimizer but Adam",
    "loss:stable_reinforce": "the dialect 0.25 does not say which tokens were sampled",
    "sample:top_logprobs": "the dialect 0.25 has no alternatives of sampled tokens",
    "prompt_logprobs:targets": "the dialect 0.25 has no log-probabilities of chosen tokens",
    "custom_loss:server": "the dialect 0.25 has no losses that are sent to the server",
    "checkpoints:overwrite": "servers of the dialect 0.25 never save over a checkpoint",
}
"""Checks (`ptl engines check`) that no server of the dialect 0.25 passes, with why."""

OPEN: Mapping[str, float] = {"grad_clip": 0.0}
"""What options of methods are on such servers where a recipe leaves them open."""
