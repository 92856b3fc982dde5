"""transformers, imported without what the engine has no use for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("is_sklearn_available", "is_scipy_available")
"""Questions of transformers whose answer decides what it imports.

With scikit-learn and SciPy, and pandas below them, it is a third slower to import and takes 130 MB
more: for an assistant model's threshold, and for losses of object detection.
"""


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


def import_transformers() -> None:
    """Import the parts of transformers that would import more than the engine needs."""
    with _answered_no():
        importlib.import_module("transformers.generation.candidate_generator")
        importlib.import_module("transformers.loss.loss_utils")
        importlib.import_module("transformers.models.auto.modeling_auto")
