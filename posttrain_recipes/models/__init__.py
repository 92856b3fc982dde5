"""The bundled base models: small, and there so that every recipe runs on a laptop.

`tools/pretrain.py` makes them.

This module imports neither torch nor transformers; it says where the models lie and no more.
"""

from __future__ import annotations

from pathlib import Path

from posttrain_recipes.errors import UsageError
from posttrain_recipes.ggufs import is_gguf
from posttrain_recipes.shown import is_address

_HERE = Path(__file__).resolve().parent

BUNDLED: dict[str, Path] = {
    "ptl/tiny": _HERE / "tiny",
    "ptl/nano": _HERE / "nano",
}
"""The bundled models, by id."""


def is_path(name: str) -> bool:
    """Whether a model is named by its place on this machine, rather than by an id."""
    return name.startswith((".", "/", "~")) or is_gguf(name)


WHAT = (
    "a model is a bundled one, a directory (./NAME), a file NAME.gguf, a hub id "
    "(ORGANISATION/NAME) or a registered one (models:/NAME@ALIAS)"
)
"""What to tell where something else is named."""


def resolve(name: str) -> str:
    """Return the directory of a bundled model, and any other name as it is."""
    path = BUNDLED.get(name)
    return name if path is None else str(path)


def check_model(model: str, option: str) -> None:
    """Raise UsageError, which does not repeat it, where an address is named as a model."""
    if is_address(model):
        raise UsageError(f"{option} is an address", hint=WHAT)
