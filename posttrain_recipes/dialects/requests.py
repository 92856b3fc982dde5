"""JSON requests of the current form as requests of the dialect 0.25, or a refusal by name.

What a newer client asks for beyond that dialect is dropped where it is the default, which means
nothing, and refused otherwise: servers would take it without effect, or say that they do not know
the field.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from posttrain_recipes.dialects.upstream import DeclinedError

DIALECT = "the server speaks the dialect 0.25"
NEWER: dict[str, dict[str, tuple[Any, str]]] = {
    "create_session": {
        "project_id": (None, "projects"),
        "display_name": (None, "names of sessions"),
    },
    "create_model": {"optimizer_config": ({"type": "adamw"}, "optimizers other than Adam")},
    "load_weights": {
        "optimizer_config": ({"type": "adamw"}, "optimizers other than Adam"),
        "weights_access_token": (None, "checkpoints of other accounts"),
        "user_metadata": (None, "metadata of a loaded model"),
    },
    "optim_step": {"optimizer_params": (None, "optimizers other than Adam")},
    "save_weights": {
        "ttl_seconds": (None, "checkpoints that expire (ttl_seconds)"),
        "overwrite": (False, "saving over a checkpoint (overwrite)"),
        "user_metadata": (None, "metadata of checkpoints"),
    },
    "save_weights_for_sampler": {
        "kind": ("snapshot", "samplers of weights in training (inflight)"),
        "ttl_seconds": (None, "checkpoints that expire (ttl_seconds)"),
        "user_metadata": (None, "metadata of checkpoints"),
    },
    "asample": {
        "topk_sample_logprobs": (0, "alternatives of sampled tokens (topk_sample_logprobs)"),
        "target_prompt_logprobs": (None, "log-probabilities of chosen tokens"),
        "prompt_alt_tokens_k": (0, "tokens drawn along the prompt (prompt_alt_tokens_k)"),
        "record_stability_info": (False, "records of who sampled what (record_stability_info)"),
    },
}
"""Fields that the dialect lacks or that its servers ignore, by route: the default, and what asking
for more is called."""
ADAM: dict[str, tuple[float, str]] = {
    "grad_clip_norm": (0.0, "bound on the gradient's norm (grad_clip_norm)"),
    "beta1": (0.9, "decay of Adam (beta1)"),
    "beta2": (0.95, "decay of Adam (beta2)"),
    "eps": (1e-12, "epsilon of Adam (eps)"),
}
"""Of Adam what servers may ignore; the learning rate and the weight decay are passed on."""
ADAPTED = {"train_attn": True, "train_mlp": True, "train_unembed": False}
"""What servers of the dialect adapt, whatever they are asked for."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""Names of checkpoints that all of them take."""


def refuse(what: str) -> DeclinedError:
    """The refusal of something that the dialect has no words for."""
    return DeclinedError(422, f"{DIALECT}, which has no {what}: it would be without effect there")


def older(route: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request to `route` without the fields that the dialect lacks.

    Raises:
        DeclinedError: one of them is not as it is by default.
    """
    made = dict(body)
    for name, (default, what) in NEWER.get(route, {}).items():
        given = made.pop(name, default)
        if given is not None and given != default:
            raise refuse(what)
    if route == "optim_step":
        made["adam_params"] = _adam(made.get("adam_params") or {})
    if route == "create_model":
        made["lora_config"] = _lora(made.get("lora_config") or {})
    if route in ("save_weights", "save_weights_for_sampler") and made.get("path"):
        made["path"] = checkpoint_name(made["path"])
    return made


def _adam(given: dict[str, Any]) -> dict[str, Any]:
    for name, (default, what) in ADAM.items():
        asked = given.get(name, default)
        if asked != default and not (name == "grad_clip_norm" and asked < 0):
            raise refuse(f"{what} other than {default:g}")
    return {name: value for name, value in given.items() if name != "grad_clip_norm"}


def _lora(given: dict[str, Any]) -> dict[str, Any]:
    for name, does in ADAPTED.items():
        if given.get(name, does) != does:
            raise refuse(f"choice of what is adapted ({name}: {str(not does).lower()})")
    return given


def checkpoint_name(name: str) -> str:
    """A name as servers of the dialect take it: letters, digits, `_` and `-`.

    Others are replaced, and a digest keeps what comes of two names apart.
    """
    if NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:180]}-{digest}"


def sampled(name: str) -> tuple[str, str] | None:
    """(model, checkpoint) of the path of weights to sample from; None for any other path."""
    found = re.fullmatch(r"tinker://([^/]+)/(?:sampler_weights/)?([^/]+)", name)
    return (found[1], found[2]) if found else None


def prompt_length(body: dict[str, Any]) -> int:
    """Tokens of a request's prompt."""
    chunks = (body.get("prompt") or {}).get("chunks") or ()
    return sum(
        len(chunk["tokens"]) if "tokens" in chunk else int(chunk.get("expected_tokens") or 0)
        for chunk in chunks
    )
