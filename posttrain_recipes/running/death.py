"""Why an engine is gone, told to whoever was using it."""

from __future__ import annotations

from posttrain_recipes.plugin import Connection
from posttrain_recipes.waiting import EngineLostError

LESS_MEMORY = (
    "use less memory: a lower 'max_length' (with 'truncate: true'), 'batch_size' or 'lora.rank', "
    "or a smaller model; 'ptl plan' estimates what each stage takes"
)
"""What to do where memory ran out."""


def explain(connection: Connection) -> EngineLostError:
    """The error of a run whose engine is gone."""
    goes_on = "'ptl run' of the same recipe goes on from what was saved"
    log, trouble = connection.log_path, connection.trouble()
    if log is None:
        why = trouble or "it does not answer any more"
        return EngineLostError("the engine was lost", why=why, hint=goes_on)
    what = "the engine ended while the run needed it"
    if trouble:  # its log ends in the middle of something else
        return EngineLostError(
            what, why=trouble, hint=f"{LESS_MEMORY}; {goes_on}", code="out-of-memory"
        )
    tail = ""
    if log.is_file():
        own = log.read_bytes()[connection.log_start :].decode(errors="replace")
        tail = "\n".join(own.splitlines()[-5:])
    return EngineLostError(what, why=tail or None, hint=f"its log is {log}; {goes_on}")
