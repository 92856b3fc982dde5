"""Capability checks of a Tinker-compatible server, through the SDK.

A check is a small program of one server, a few requests on a handful of tokens, and has the name of
the capability that it shows: `loss:ppo`. The same names are what plugins declare in `needs`.
`ptl engines check` runs all of them; a run on a server asks for those that its recipe needs.

    for outcome in probe(service, rest, "Qwen/Qwen3-8B", ["loss:ppo"]):
        print(outcome.name, outcome.verdict, outcome.detail)
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain_recipes.probe.bench import RANK, Bench, Check, Outcome, UnsupportedError
from posttrain_recipes.probe.running import CHECKS, probe, with_requirements

__all__ = [
    "CHECKS",
    "EMBEDDED_LACKS",
    "RANK",
    "Bench",
    "Check",
    "Outcome",
    "UnsupportedError",
    "probe",
    "with_requirements",
]

EMBEDDED_LACKS: Mapping[str, str] = {
    "optimizer:dimuon": "its constants are not published: it has none",
    "loss:stable_reinforce": "its definition is not published; 'ptl serve --substitute' computes "
    "another one in its place",
    "sample:tempered_logprobs": "the log-probabilities of its samples are those at temperature 1, "
    "and say nothing of the distribution that a token was drawn from; set 'temperature: 1'",
}
"""The checks that the embedded engine does not pass, with why; its test suite holds it to that."""
