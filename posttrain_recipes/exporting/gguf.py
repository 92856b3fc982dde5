"""A checkpoint as a directory that llama.cpp and Ollama serve: model.gguf and a Modelfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain_recipes.exporting import gguf_model, merged, modelfile
from posttrain_recipes.exporting.gguf_tokens import Words
from posttrain_recipes.options import RendererConfig
from posttrain_recipes.pretrained import token_ids
from posttrain_recipes.training.text.chat_template import ChatRenderer

FILE = "model.gguf"


def write(
    adapter: Path, out: Path, kind: gguf_model.Kind, name: str, renderer: RendererConfig
) -> list[str]:
    """Write model.gguf and Modelfile into `out`.

    Args:
        adapter: the folder of a PEFT adapter; it is added to its base model.
        kind: the type of the weights.
        name: what the file calls the model.
        renderer: how the model was asked in training.

    Returns:
        What the files do otherwise than the model in training, in sentences.

    Raises:
        MissingExtraError: gguf or peft is not installed.
        PtlError: the model has no form in GGUF.
    """
    made = merged.load(adapter, "--gguf")
    return write_model(made.model, made.tokenizer, out, kind, name, renderer)


def write_model(
    model: Any,
    tokenizer: Any,
    out: Path,
    kind: gguf_model.Kind,
    name: str,
    renderer: RendererConfig,
) -> list[str]:
    """The same of a model and a tokenizer of transformers. The tokenizer's template is set."""
    if renderer.chat_template is not None:
        tokenizer.chat_template = renderer.chat_template
    gguf_model.check(model.config)
    render = _render(tokenizer, renderer) if tokenizer.chat_template else None
    stops = _stops(tokenizer, model, renderer)
    bos = tokenizer.bos_token or ""
    adds_bos = bool(bos) and _begins_with_bos(tokenizer, render, bos)
    rows = model.get_input_embeddings().weight.shape[0]
    words = Words.of(tokenizer, rows, stops, adds_bos)
    gguf_model.write(out / FILE, model, words, kind, name)
    template = str(tokenizer.chat_template or "")
    text, told = modelfile.write(
        FILE,
        render,
        [tokenizer.convert_ids_to_tokens(stop) for stop in stops],
        bos=bos if adds_bos else "",
        notes=words.notes,
        shows_more=any(word in template for word in ("tools", "reasoning_content", "thinking")),
    )
    (out / "Modelfile").write_text(text, encoding="utf-8")
    return told


def _render(tokenizer: Any, renderer: RendererConfig) -> modelfile.Render:
    def render(turns: Sequence[modelfile.Turn], asks: bool) -> str:
        messages = [{"role": role, "content": said} for role, said in turns]
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks, **renderer.variables
        )
        return text

    return render


def _stops(tokenizer: Any, model: Any, renderer: RendererConfig) -> list[int]:
    """Tokens that end a reply, as the engine's renderer has them."""
    named: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config):
        named.update(token_ids(getattr(source, "eos_token_id", None)))
    if not tokenizer.chat_template:
        own = tokenizer.eos_token_id
        return sorted(named | ({own} if own is not None else set()))
    rows = model.get_input_embeddings().weight.shape[0]
    found = ChatRenderer(tokenizer, renderer, sorted(named)).stop
    return [stop for stop in found if stop < rows]


def _begins_with_bos(tokenizer: Any, render: modelfile.Render | None, bos: str) -> bool:
    """Whether a prompt begins with the token of a beginning: by the chat template, which is what
    the engine asks with; without one by the tokenizer."""
    if render is None:
        ids = tokenizer("a").input_ids
        return bool(ids) and ids[0] == tokenizer.bos_token_id
    try:
        # A template that begins each message with it, as SmolLM's does, puts no such token.
        one, two = (render([("user", "a")] * count, False) for count in (1, 2))
    except Exception:  # it wants something else of conversations
        return False
    return one.startswith(bos) and two.count(bos) == one.count(bos)
