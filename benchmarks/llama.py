"""llama.cpp as a peer of `sampling.py`, through the low-level functions of llama-cpp-python.

The file is what `ptl export --gguf` writes, in f16 or q8_0; f32 and bf16 are made of the f16 one by
llama.cpp itself. All sequences are one batch of its own, every token of the batch is one call of
`llama_decode`, with as many threads as the engine has. Tokens are drawn from its logits by the
engine's sampler, which takes less time than llama.cpp's.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"f32": "LLAMA_FTYPE_ALL_F32", "bf16": "LLAMA_FTYPE_MOSTLY_BF16"}
"""What llama.cpp makes of a file in f16."""
BATCH = 2048
"""Tokens of a call, llama.cpp's default."""


def gguf(path: str, kind: str, folder: Path) -> Path:
    """The model in `path` as a GGUF file in `folder`: f16, q8_0, f32 or bf16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain_recipes.exporting.gguf import FILE, write_model
    from posttrain_recipes.options import RendererConfig

    written: Any = "q8_0" if kind == "q8_0" else "f16"
    out = folder / written
    if not (out / FILE).exists():
        out.mkdir()
        model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(path)
        write_model(model, tokenizer, out, written, "bench", RendererConfig())
    if kind == written:
        return out / FILE
    llama_cpp, target = _library(), folder / f"{kind}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp.llama_cpp, KINDS[kind])
    source = str(out / FILE).encode()
    if llama_cpp.llama_model_quantize(source, str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp makes no {kind} of {out / FILE}")
    return target


@cache
def _library() -> Any:
    """llama-cpp-python, told to say nothing."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.silent = silent  # llama.cpp calls it as long as it is loaded
    return llama_cpp


class Llama:
    """A model that generates `rows` sequences of `length` tokens, prompts included, at a time."""

    def __init__(self, file: Path, rows: int, length: int, threads: int) -> None:
        llama_cpp = self._lib = _library()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_batch = rows, BATCH
        params.n_ctx = rows * -(-length // 256) * 256
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {file}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        """Give its memory back."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def generate(self, prompts: np.ndarray, rows: int, new: int) -> np.ndarray:
        """Tokens (rows, new) after prompts (P, length): of one prompt, or of one for each row."""
        self._lib.llama_memory_clear(self._memory, True)
        count, length = prompts.shape
        logits = []
        for start in range(0, count, BATCH // length):
            part = range(start, min(count, start + BATCH // length))
            cells = [
                (int(prompts[r, i]), i, r, i == length - 1) for r in part for i in range(length)
            ]
            logits.append(self._decode(cells))
        found = np.concatenate(logits)
        if count < rows:
            for row in range(1, rows):
                self._lib.llama_memory_seq_cp(self._memory, 0, row, -1, -1)
            found = np.repeat(found, rows, axis=0)
        rng, out = np.random.default_rng(0), np.empty((rows, new), np.int64)
        for step in range(new):
            out[:, step] = _drawn(found, rng)
            if step < new - 1:
                found = self._decode(
                    [(int(out[r, step]), length + step, r, True) for r in range(rows)]
                )
        return out

    def _decode(self, cells: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """The logits (asked, V) of tokens, given as (token, position, sequence, asked)."""
        batch = self._batch
        batch.n_tokens = len(cells)
        for index, (token, position, sequence, asked) in enumerate(cells):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = asked
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        rows = sum(asked for *_, asked in cells)
        found = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (rows, self._vocab)).copy()


def _drawn(logits: np.ndarray, rng: np.random.Generator) -> list[int]:
    """A token for each row of logits (R, V)."""
    import torch

    from posttrain_recipes.engine.generate.sampler import pick

    rows = len(logits)
    tokens, _ = pick(
        torch.from_numpy(logits), [1.0] * rows, [-1] * rows, [1.0] * rows, rng.random(rows).tolist()
    )
    return tokens
