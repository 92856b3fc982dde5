"""A program for Modal that serves a trained model with vLLM, and one that asks it.

Both are meant to be read and changed. What comes from outside stands in them as quoted constants.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from string import Template

ADAPTER, MODEL = "adapter", "model"
"""Directories beside the app: a LoRA adapter, or a whole model."""
KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads its key from, and the name of it in the secret."""
GPU = "L40S"
LONGEST = 36
"""Characters of a label: Modal takes 64, and the volume and the function add theirs."""

_APP = Template('''\
"""Serve $label with vLLM on Modal: the API of OpenAI, behind a key.

    pip install modal && modal setup
    modal secret create $label $key="$$(openssl rand -hex 24)"
$upload    modal deploy app.py

The secret may hold HF_TOKEN too, for a base model that the hub hands out to some alone. Containers
start when requests come, and stop when none has come for SCALEDOWN seconds: the first request after
that waits for the model to load. GET /health answers 200 once it is there. client.py asks it.
`modal deploy` replaces an app of the same name: change APP for a second one of this model.
"""

import subprocess
$imports
import modal

APP = $app
MODEL = $model
"""What requests call the model."""
BASE = $base
GPU = $gpu
"""One that holds the weights, 2 bytes a parameter, and as much again for requests."""
SECRET = $secret
VLLM = "vllm>=0.26"
"""Pin the version that you tried."""
PORT = 8000
MINUTES = 60
SCALEDOWN = 5 * MINUTES
MOST_CONTAINERS = 2
REQUESTS = 64
"""That one container takes at a time; more start another."""

app = modal.App(APP)
cache = modal.Volume.from_name("huggingface-cache", create_if_missing=True)
compiled = modal.Volume.from_name("vllm-cache", create_if_missing=True)
$weights

@app.function(
    image=image,
    gpu=GPU,
    volumes={
        "/root/.cache/huggingface": cache,
        "/root/.cache/vllm": compiled,$volume
    },
    secrets=[modal.Secret.from_name(SECRET, required_keys=["$key"])],
    scaledown_window=SCALEDOWN,
    max_containers=MOST_CONTAINERS,
    timeout=60 * MINUTES,
)
@modal.concurrent(max_inputs=REQUESTS)
@modal.web_server(port=PORT, startup_timeout=20 * MINUTES)
def serve() -> None:
    """Start vLLM, which takes its key from $key: no command line shows it."""
    command = [
        "vllm",
        "serve",
        BASE,
        "--host",
        "0.0.0.0",
        "--port",
        str(PORT),
$options    ]
    subprocess.Popen(command)
''')

_CLIENT = Template('''\
"""Ask $label, as app.py serves it. Needs the package openai.

    export MODEL_URL=https://...modal.run $key=...
    python client.py "What is the capital of France?"

`modal deploy` prints the address; the key is the one of the secret.
"""

import os
import sys

import httpx
from openai import OpenAI

MODEL = $model
WAIT = 20 * 60
"""Seconds that a container may take to start."""


def main() -> None:
    """Wait for the server, and print the reply to what is asked on the command line."""
    url = os.environ["MODEL_URL"].rstrip("/")
    question = " ".join(sys.argv[1:]) or "Hello!"
    httpx.get(f"{url}/health", timeout=WAIT, follow_redirects=True).raise_for_status()
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ["$key"], timeout=WAIT)
    written = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_tokens=512,
        stream=True,
    )
    for part in written:
        if part.choices:
            print(part.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
''')


@dataclass(frozen=True)
class Served:
    """What is served."""

    label: str
    """Name of the app, of its secret and of the model: see `label`."""
    base: str | None
    """A hub id, with an adapter beside the app; None: a whole model lies there."""
    rank_option: tuple[str, ...] = ()
    """The option of vLLM for the adapter's rank."""
    template: bool = False
    """Whether a chat_template.jinja lies beside the weights that the base has not."""
    gpu: str = GPU


def label(run: str, stage: str) -> str:
    """A stage of a run as Modal takes a name, at most 36 characters: letters, digits, '-', '_' and
    '.'. Two stages have two names: where one was changed for it, a hash of the whole stands at the
    end.

    Args:
        run: its id, or the path of a checkpoint that is of no run.
        stage: empty without a run.
    """
    whole = f"{run}-{stage}" if stage else run
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", whole).strip("-._")
    # The ids of runs end in a number: with one in the middle of a stage's name, as that of stage
    # `b-2-c` of run `a-1`, the same letters may be those of stage `c` of run `a-1-b-2`.
    if made == whole and len(made) <= LONGEST and not re.search(r"-\d+-", stage):
        return made
    short = hashlib.sha256(f"{run}/{stage}".encode()).hexdigest()[:6]
    kept = made[: LONGEST - len(short) - 1].rstrip("-._")
    return f"{kept or 'model'}-{short}"


def app(served: Served) -> str:
    """The text of app.py."""
    whole = served.base is None
    here = f"/{MODEL if whole else ADAPTER}"
    options: list[str] = ["--served-model-name", "@MODEL"] if whole else []
    if not whole:
        options += ["--enable-lora", "--lora-modules", f'@f"{{MODEL}}={here}"']
        options += served.rank_option
    if served.template:
        options += ["--chat-template", f"{here}/chat_template.jinja"]
    image = 'image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(VLLM)'
    if whole:
        weights = (
            'weights = modal.Volume.from_name(f"{APP}-weights", create_if_missing=True)\n'
            f"{image}\n"
        )
    else:
        weights = (
            "image = (\n"
            '    modal.Image.debian_slim(python_version="3.12")\n'
            "    .uv_pip_install(VLLM)\n"
            f'    .add_local_dir(Path(__file__).parent / "{ADAPTER}", "{here}")\n'
            ")\n"
        )
    upload = (
        f"    modal volume create {served.label}-weights\n"
        f"    modal volume put {served.label}-weights {MODEL} /\n"
        if whole
        else ""
    )
    text = _APP.substitute(
        label=served.label,
        key=KEY,
        upload=upload,
        imports="" if whole else "from pathlib import Path\n",
        app=quoted(served.label),
        model=quoted(served.label),
        base=quoted(f"/weights{here}" if whole else served.base or ""),
        gpu=quoted(served.gpu),
        secret=quoted(served.label),
        weights=weights,
        volume='\n        "/weights": weights,' if whole else "",
        options="".join(f"        {_word(option)},\n" for option in options),
    )
    if whole:
        text = text.replace(
            f'"{here}/chat_template.jinja"', f'"/weights{here}/chat_template.jinja"'
        )
    return _within(text)


def client(served: Served) -> str:
    """The text of client.py."""
    return _within(_CLIENT.substitute(label=served.label, key=KEY, model=quoted(served.label)))


def _word(option: str) -> str:
    return option.removeprefix("@") if option.startswith("@") else quoted(option)


def quoted(text: str) -> str:
    """A text as a Python literal, in double quotes where that is as readable."""
    literal = ascii(text)
    if literal.startswith("'") and '"' not in text:
        return f'"{literal[1:-1]}"'
    return literal


def _within(text: str) -> str:
    """A constant that is too long for a line is let pass by ruff."""
    lines = [f"{line}  # noqa: E501" if len(line) > 100 else line for line in text.split("\n")]
    return "\n".join(lines)
