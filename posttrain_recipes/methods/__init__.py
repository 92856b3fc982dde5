"""Built-in methods; they come in through the same hook as anybody's."""

from collections.abc import Sequence

from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.plugin import Method, hookimpl


@hookimpl
def ptl_methods() -> Sequence[type[Method]]:
    """The methods of this package."""
    return [SFT, DPO]
