"""transformers, imported without what its user here has no use for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNUSED = ("is_sklearn_available", "is_scipy_available")
"""Questions of transformers whose answer decides what it imports.

With scikit-learn and SciPy, and pandas below them, it is a third slower to import and takes 130 MB
more: for an assistant model's threshold, and for losses of object detection.
"""
FACTORY = "transformers.models.auto.auto_factory"
MIXIN = "GenerationMixin"


@contextmanager
def _answered_no() -> Iterator[None]:
    import transformers.utils as asked

    known = {name: getattr(asked, name) for name in UNUSED if hasattr(asked, name)}
    try:
        for name in known:
            setattr(asked, name, lambda: False)
        yield
    finally:
        # What a model's own code asks later is answered truly.
        for name, answer in known.items():
            setattr(asked, name, answer)


def import_models() -> None:
    """Import the parts of transformers that would import more than a language model needs."""
    with _answered_no():
        importlib.import_module("transformers.generation.candidate_generator")
        importlib.import_module("transformers.loss.loss_utils")
        importlib.import_module("transformers.models.auto.modeling_auto")


def import_tokenizers() -> None:
    """Import `AutoTokenizer` without the code that generates: three quarters of its time.

    One module that models and tokenizers share imports a class of that code, for one function
    about models. That function gets the class when it is first called.
    """
    import sys

    from transformers import generation

    if FACTORY in sys.modules or MIXIN in vars(generation):
        return
    for needed in ("configuration_utils", "dynamic_module_utils", "models.auto.configuration_auto"):
        importlib.import_module(f"transformers.{needed}")
    setattr(generation, MIXIN, None)
    try:
        factory = importlib.import_module(FACTORY)
    finally:
        delattr(generation, MIXIN)
    asks = "add_generation_mixin_to_remote_model"
    whole = getattr(factory, asks, None)
    if whole is None or getattr(factory, MIXIN, factory) is not None:
        return

    def complete(model_class: Any) -> Any:
        setattr(factory, MIXIN, getattr(generation, MIXIN))
        setattr(factory, asks, whole)
        return whole(model_class)

    setattr(factory, asks, complete)
