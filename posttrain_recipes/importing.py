"""transformers, imported without what its user here has no use for."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
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


COMPILER = "torch._dynamo"
INDEXED = f"{COMPILER}._trace_wrapped_higher_order_op"
GETS = "TransformGetItemToIndex"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torch's compiler when something of it is used, and not with a model's code.

    Nothing here compiles, and it is half of what the code of a model takes to import. That asks it
    to leave functions alone, and for one class that masks of unusual attention are made with; an
    operation on tensors without data asks it to leave that alone.
    """
    if COMPILER in sys.modules:
        yield
        return
    plain: list[Any] = []

    def disable(fn: Any = None, *args: Any, wrapping: bool = True, **options: Any) -> Any:
        if fn is None:
            return lambda fn: disable(fn, *args, wrapping=wrapping, **options)
        if not wrapping:  # an operation of torch's own, which keeps what it is given here
            plain.append(fn)
            return fn

        @functools.wraps(fn)
        def disabled(*given: Any, **named: Any) -> Any:
            return whole(COMPILER, "disable")(fn, *args, **options)(*given, **named)

        return disabled

    def whole(module: str, name: str) -> Any:
        if name.startswith("__"):  # whoever imports it asks whether it is a package
            raise AttributeError(name)
        put_back()
        return getattr(importlib.import_module(module), name)

    def put_back() -> None:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        while plain:
            vars(plain.pop()).pop("__dynamo_disable", None)

    compiler: Any
    indexed: Any
    compiler, indexed = ModuleType(COMPILER), ModuleType(INDEXED)
    compiler.disable = disable
    compiler.allow_in_graph = lambda fn: fn  # one who compiles looks into it
    setattr(indexed, GETS, lambda: whole(INDEXED, GETS)())
    compiler.__getattr__ = functools.partial(whole, COMPILER)
    indexed.__getattr__ = functools.partial(whole, INDEXED)
    stand_ins = {COMPILER: compiler, INDEXED: indexed}
    sys.modules |= stand_ins
    try:
        yield
    finally:
        put_back()


def import_models() -> None:
    """Import the parts of transformers that would import more than a language model needs."""
    with _answered_no(), without_compiler():
        importlib.import_module("transformers.generation.candidate_generator")
        importlib.import_module("transformers.loss.loss_utils")
        importlib.import_module("transformers.models.auto.modeling_auto")
        importlib.import_module("transformers.modeling_utils")


def import_tokenizers() -> None:
    """Import `AutoTokenizer` without the code that generates: three quarters of its time.

    One module that models and tokenizers share imports a class of that code, for one function
    about models. That function gets the class when it is first called.
    """
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
