"""Models and tokenizers as transformers loads them: of a directory, of the hub, of a GGUF file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.errors import PtlError
from posttrain_recipes.importing import import_models, import_tokenizers, without_compiler

PROCESSOR = "chat_template.json"
_AGAIN = (
    "a download may have broken off, or files be of another model: copy config.json and the "
    "weights from the model's origin again"
)


def is_local(location: str) -> bool:
    """Whether a model lies on this machine, by its location."""
    return ggufs.is_gguf(location) or Path(location).is_dir()


def token_ids(named: Any) -> list[int]:
    """The token ids of what a file names as one, or as a list; what is no id is left out."""
    listed = named if isinstance(named, list) else [named]
    return [token for token in listed if type(token) is int and token >= 0]


def load_model(location: str, dtype: Any) -> Any:
    """The causal language model at `location`, in that dtype, with all of its weights.

    Raises:
        OSError, ValueError, KeyError, ImportError: as transformers does.
        PtlError: it is not there, or its files are damaged, do not fit together or lack weights.
    """
    if os.path.isabs(location) and not is_local(location):
        raise PtlError(
            f"there is no model in {location}",
            hint="put it back there, if it was moved or removed",
            code="bad-model",
        )
    try:
        model, told = _loaded(location, dtype)
    except (PtlError, OSError, ValueError, KeyError, ImportError, MemoryError):
        raise
    except Exception as error:  # safetensors, pickle, torch and checks of configs have their own
        raise PtlError(
            f"the files of {location} cannot be loaded",
            why=in_a_line(error),
            hint=_AGAIN,
            code="bad-model",
        ) from None
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lacking = sorted(set(told["missing_keys"]) - tied)
    lacking += [
        f"{name} has the shape {tuple(has)}, and {tuple(wants)} by its config"
        for name, has, wants in sorted(told["mismatched_keys"])
    ]
    if lacking:
        more = f", and {len(lacking) - 1} more" if lacking[1:] else ""
        hint = ggufs.HINT if ggufs.is_gguf(location) else _AGAIN
        raise PtlError(
            f"{location} lacks weights", why=f"{lacking[0]}{more}", hint=hint, code="bad-model"
        )
    return model


def _loaded(location: str, dtype: Any) -> Any:
    """The model, and what transformers tells of loading it."""
    import_models()
    from transformers import AutoModelForCausalLM

    if not ggufs.is_gguf(location):
        with without_compiler():
            return AutoModelForCausalLM.from_pretrained(
                location,
                dtype=dtype,
                local_files_only=Path(location).is_dir(),
                ignore_mismatched_sizes=True,  # they are told with the others
                output_loading_info=True,
            )
    file, config = Path(location), ggufs.config(location)
    from transformers import modeling_gguf_pytorch_utils as reader

    reader.tqdm = lambda tensors, **_: tensors  # a bar that is drawn into pipes and logs, too
    try:
        return AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except ImportError:
        raise ggufs.needed("a model of a GGUF file") from None


def in_a_line(error: Exception) -> str:
    """What another library says in an error."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def load_tokenizer(location: str, **options: Any) -> Any:
    """The tokenizer of the model at `location`. Raises what transformers does, or `PtlError`."""
    if ggufs.is_gguf(location):
        return ggufs.tokenizer(location)
    import_tokenizers()
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(location, **options)
    if not made.chat_template:
        made.chat_template = processor_template(location)
    return made


def processor_template(location: str) -> str | None:
    """The chat template in `chat_template.json`, where models that also see keep it and
    `AutoTokenizer` does not look; None where there is none."""
    file = Path(location) / PROCESSOR
    try:
        if not Path(location).is_dir():
            from transformers.utils import cached_file

            file = Path(cached_file(location, PROCESSOR))
        found = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) and found.strip() else None


def load_config(location: str) -> Any:
    """The config of the model at `location`. Raises what transformers does, or `PtlError`."""
    if ggufs.is_gguf(location):
        return ggufs.config(location)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(location, local_files_only=Path(location).is_dir())
