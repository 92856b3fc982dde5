"""The same training by this package and by its peers: quality, time and what has to be written.

    python benchmarks/peers.py --install VENVS
    python benchmarks/peers.py DIR --venvs VENVS [--only equal/trl ...] [--quick]
    python benchmarks/peers.py --page

LoRA on 256 conversations of `recipes/data/chat.jsonl` from the model in DIR (SmolLM2-135M-Instruct,
by `tools/small_model.py`), by the files of `benchmarks/peers`: those of `equal` with one set of
hyperparameters for all, those of `recommended` with what each tool's documents say. Every adapter
is measured by `peers_score.py` on the 256 records of `recipes/data/held_out.jsonl`. Each peer is
in an environment of its own, which `--install` makes (with uv); sides take turns. What was found is
kept in `benchmarks/peers.json` after each run, and `docs/peers.md` is written from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import common  # noqa: E402
import peers_page  # noqa: E402

CONFIGS = ROOT / "benchmarks" / "peers"
KEPT = ROOT / "benchmarks" / "peers.json"
DATA = ROOT / "recipes" / "data"
SETTINGS = ("equal", "recommended")
ROWS, QUICK_ROWS = (256, 256), (16, 16)
"""Training and held-out records."""
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model's own chat template puts first. It stands in the data, so that the tools that have
templates of their own (LLaMA-Factory, the cookbook) make the same tokens of a conversation."""
TORCH = "torch==2.13.0"
LIMIT = 1800
"""Seconds after which a run is given up."""
KEY = "tml-benchmark-of-peers"
"""What clients show to the engine on the loopback interface."""
PTL = (sys.executable, "-m", "posttrain_recipes.cli")


@dataclass(frozen=True)
class Tool:
    """How a tool is installed and started."""

    packages: tuple[str, ...] = ()
    """What its environment is made of; none for this package."""
    after: tuple[str, ...] = ()
    """What is installed against its pins, once it is there."""
    environment: str = ""
    """The environment's name, where it is not the tool's own."""
    command: tuple[str, ...] = ()
    """Program of its environment, and arguments."""
    served: bool = False
    """Whether it trains through this package's engine, which `ptl serve` has to offer first."""
    extra: tuple[str, ...] = ()
    """Files beside its own that a person writes."""
    config: str = ""
    index_torch: bool = False
    """Whether torch has to be the index's own build, against which its torchaudio is made, and not
    one for CPUs alone from `UV_FIND_LINKS`."""


TOOLS = {
    "ptl": Tool(config="ptl.yaml"),
    "trl": Tool(
        packages=("trl[peft]==1.16.0",),
        command=("trl", "sft", "--config", "trl.yaml"),
        config="trl.yaml",
    ),
    "axolotl": Tool(
        packages=("axolotl==0.19.0",),
        after=("tinker==0.38.0",),
        command=("axolotl", "train", "axolotl.yaml"),
        config="axolotl.yaml",
    ),
    "llamafactory": Tool(
        packages=("llamafactory==0.9.5",),
        command=("llamafactory-cli", "train", "llamafactory.yaml"),
        extra=("dataset_info.json",),
        config="llamafactory.yaml",
        index_torch=True,
    ),
    "cookbook": Tool(
        packages=("tinker-cookbook==0.5.8", "tinker==0.38.0"),
        command=("python", "cookbook.py"),
        served=True,
        config="cookbook.py",
    ),
    "axolotl_tinker": Tool(
        environment="axolotl",
        command=("axolotl", "train", "axolotl_tinker.yaml"),
        served=True,
        config="axolotl_tinker.yaml",
    ),
}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a directory with SmolLM2")
    parser.add_argument("--install", type=Path, metavar="VENVS", help="make the environments")
    parser.add_argument("--venvs", type=Path, help="where --install made them")
    parser.add_argument("--only", nargs="*", metavar="SETTING/TOOL", help="equal/trl ...")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each")
    parser.add_argument("--quick", action="store_true", help="does it run at all? one step")
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--work", type=Path, help="a folder to keep runs and logs in")
    parser.add_argument("--page", action="store_true", help="only write docs/peers.md")
    args = parser.parse_args()
    if args.install:
        install(args.install.resolve())
    elif args.page:
        peers_page.write(json.loads(args.out.read_text(encoding="utf-8")))
    elif args.model is None or args.venvs is None:
        parser.error("name the model's directory and --venvs, or --install or --page")
    else:
        measure(args)


def install(folder: Path) -> None:
    """Make the environment of each peer in `folder`; one that fails is told and does not end it."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    for name, tool in TOOLS.items():
        if not tool.packages:
            continue
        python = folder / name / "bin" / "python"
        environment = dict(os.environ)
        if tool.index_torch:
            environment.pop("UV_FIND_LINKS", None)
        add = [uv, "pip", "install", "-q", "--python", str(python)]
        commands = [
            [uv, "venv", "-q", "--allow-existing", "-p", sys.executable, str(folder / name)],
            [*add, *tool.packages, TORCH],
        ]
        commands += [[*add, *tool.after]] if tool.after else []
        worked = all(subprocess.run(one, env=environment).returncode == 0 for one in commands)
        print(f"{name}: {'installed' if worked else 'FAILED'}", flush=True)


# --- measuring -----------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> None:
    """Run, score and keep each side; the page is written where all of it was measured."""
    from effects_real import weights

    model, venvs = args.model.resolve(), args.venvs.resolve()
    wanted = args.only or [f"{setting}/{tool}" for setting in SETTINGS for tool in TOOLS]
    kept = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if kept.get("quick") != args.quick:
        kept = {}
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        tokens = write_data(model, work / "data", QUICK_ROWS if args.quick else ROWS)
        kept |= {"quick": args.quick, "machine": common.machine(), "data": tokens}
        kept |= {"weights": weights(str(model)), "date": time.strftime("%Y-%m-%d")}
        kept.setdefault("runs", {})
        if "base" not in kept:
            kept["base"] = score(model, None, work)
        for turn in range(args.repeats):
            for side in wanted:
                setting, name = side.split("/")
                found = one_run(setting, name, model, venvs, work)
                if "failed" not in found and turn == 0:
                    found |= score(model, work / side / "adapter", work)
                found |= written(setting, name)
                runs = kept["runs"].setdefault(setting, {})
                if turn and "seconds" in found:
                    for what in ("seconds", "loop"):
                        runs[name][what] += found[what]
                elif not turn:
                    runs[name] = found
                args.out.write_text(peers_page.dumped(kept), encoding="utf-8")
                print(side, told(found), flush=True)
    if not args.quick and not args.only:
        peers_page.write(kept)


def told(found: dict[str, Any]) -> str:
    """One line on a run, for the screen."""
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    loop = statistics.median(found["loop"]) if found["loop"] else float("nan")
    right = found.get("right", "")
    return (
        f"{statistics.median(found['seconds']):.1f} s, loop {loop:.1f} s, "
        f"{right.count('1')} of {len(right)} right"
    )


def write_data(model: Path, folder: Path, rows: tuple[int, int]) -> dict[str, Any]:
    """Write what is trained on and what is held out; how many records and tokens those are.

    `train.jsonl` has `messages`, as all tools but one read them. `pairs.jsonl` has the same as
    `prompt` and `completion`: TRL trains on the completion alone, and on messages only with a chat
    template that marks what the assistant says, which this model's does not.
    """
    from transformers import AutoTokenizer

    folder.mkdir(exist_ok=True)
    system = {"role": "system", "content": SYSTEM}
    lines = (DATA / "chat.jsonl").read_text(encoding="utf-8").splitlines()[: rows[0]]
    train = [{"messages": [system, *json.loads(line)["messages"]]} for line in lines]
    lines = (DATA / "held_out.jsonl").read_text(encoding="utf-8").splitlines()[: rows[1]]
    held_out = [
        {
            "messages": [
                system,
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in map(json.loads, lines)
    ]
    pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in train]
    for name, records in (("train", train), ("pairs", pairs), ("held_out", held_out)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in train]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    return {"train": len(train), "held_out": len(held_out), "tokens": tokens}


def score(model: Path, adapter: Path | None, work: Path) -> dict[str, Any]:
    """What `peers_score.py` says of an adapter, or of the base: `right` as a string of 0 and 1."""
    out = work / "score.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers_score.py"), str(model)]
    command += [str(work / "data" / "held_out.jsonl"), str(out)]
    command += ["--adapter", str(adapter)] if adapter else []
    done = subprocess.run(command, env=surroundings(work), capture_output=True, text=True)
    if done.returncode:
        return {"failed": last_words(done.stderr)}
    found = json.loads(out.read_text(encoding="utf-8"))
    return {
        "right": "".join("01"[right] for right in found["right"]),
        "nll": [round(value, 4) for value in found["nll"]],
    }


def written(setting: str, name: str) -> dict[str, Any]:
    """How much a person writes for a tool: lines but blank ones and comments, and settings."""
    files = [CONFIGS / setting / file for file in (TOOLS[name].config, *TOOLS[name].extra)]
    return {
        "lines": sum(map(peers_page.lines, files)),
        "values": sum(map(peers_page.values, files)),
    }


# --- one run -------------------------------------------------------------------------------------


def one_run(setting: str, name: str, model: Path, venvs: Path, work: Path) -> dict[str, Any]:
    """Train by one tool in a folder of its own.

    Returns:
        `seconds` from the command's start to an adapter that PEFT reads, and `loop`, those of the
        training loop as the tool tells them; `failed` and its last words where it did not end well.
        `versions` of what decides.
    """
    tool, folder = TOOLS[name], work / setting / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(model)
    shutil.copytree(work / "data", folder / "data")
    for file in (tool.config, *tool.extra):
        shutil.copy(CONFIGS / setting / file, folder)
    environment = venvs / (tool.environment or name)
    if tool.command and not (environment / "bin" / tool.command[0]).exists():
        return {"failed": f"{tool.command[0]} is not installed in its environment"}
    start = time.perf_counter()
    try:
        if name == "ptl":
            ran = run([*PTL, "run", "ptl.yaml"], folder)
            export(["peers-1"], folder)
        elif tool.served:
            dtype = "float32" if setting == "equal" else "auto"
            with server(folder, dtype) as more:
                ran = run(program(environment, tool.command), folder, **more)
                export([checkpoint(folder, more), "--base-url", more["TINKER_BASE_URL"]], folder)
        else:
            ran = run(program(environment, tool.command), folder)
        seconds = time.perf_counter() - start
        if not (folder / "adapter" / "adapter_model.safetensors").exists():
            raise Failed("it ended well and left no adapter")
    except Failed as error:
        return {"failed": str(error).replace(str(venvs), "VENVS").replace(str(work), "WORK")}
    loop = loop_seconds(name, folder, ran)
    return {
        "seconds": [round(seconds, 1)],
        "loop": [round(loop, 1)] if loop else [],
        "versions": versions(environment if tool.command else Path(sys.prefix)),
    }


class Failed(Exception):
    """A tool ended with an error."""


def program(environment: Path, command: tuple[str, ...]) -> list[str]:
    """A command of an environment."""
    return [str(environment / "bin" / command[0]), *command[1:]]


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """Environment variables, the same for every side: all cores, no hub, nothing reported."""
    threads = str(len(os.sched_getaffinity(0)))
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,  # accelerate and torchrun would take one
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "PTL_HOME": str(folder / ".ptl"),
        **more,
    }


def run(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in `folder`; what it printed, which is kept in `log.txt` too.

    Raises:
        Failed: with the last thing that it said.
    """
    environment = Path(command[0]).parent
    path = f"{environment}{os.pathsep}{os.environ['PATH']}"
    if command[: len(PTL)] == list(PTL):
        more = {"PYTHONPATH": str(ROOT), **more}
    with (folder / "log.txt").open("a+", encoding="utf-8") as log:
        begin = log.tell()
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=surroundings(folder, PATH=path, **more),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {LIMIT} s") from None
        log.seek(begin)
        said = log.read()
    if done.returncode:
        raise Failed(last_words(said))
    return said


def last_words(said: str) -> str:
    """The last line that names an error, or the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r"^[\w.]*(Error|Exception)\b", line) and "CalledProcessError" not in line
    ]
    return (errors or lines or ["nothing was said"])[-1][:300]


@contextlib.contextmanager
def server(folder: Path, dtype: str) -> Iterator[dict[str, str]]:
    """`ptl serve` with the model as `model`: what its clients find in their environment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    more = {"TINKER_BASE_URL": f"http://127.0.0.1:{port}", "TINKER_API_KEY": KEY}
    command = [*PTL, "serve", "--model", "model=./model", "--port", str(port), "--dtype", dtype]
    with (folder / "server.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=surroundings(folder, PTL_ENGINE_TOKEN=KEY, PYTHONPATH=str(ROOT)),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(f"{more['TINKER_BASE_URL']}/healthz", process)
            yield more
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until a server answers.

    Raises:
        Failed: it ended, or did not answer within three minutes.
    """
    for _ in range(1800):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise Failed("ptl serve did not start")


def checkpoint(folder: Path, more: dict[str, str]) -> str:
    """The last checkpoint that a client of the engine saved, a tinker:// path."""
    kept = folder / "out" / "checkpoints.jsonl"
    if kept.exists():
        row = json.loads(kept.read_text(encoding="utf-8").splitlines()[-1])
        return str(row.get("state_path") or row["sampler_path"])
    import tinker

    rest = tinker.RestClient(base_url=more["TINKER_BASE_URL"], api_key=more["TINKER_API_KEY"])
    runs = rest.list_training_runs().result().training_runs
    found = [
        one.tinker_path
        for training in runs
        for one in rest.list_checkpoints(training.training_run_id).result().checkpoints
    ]
    if not found:
        raise Failed("no checkpoint was saved")
    return str(found[-1])


def export(arguments: list[str], folder: Path) -> None:
    """Write an adapter of the engine's in PEFT's form to `folder/adapter`."""
    target, *rest = arguments
    key = {"TINKER_API_KEY": KEY} if rest else {}
    run([*PTL, "export", target, "adapter", *rest], folder, **key)


def loop_seconds(name: str, folder: Path, said: str) -> float | None:
    """Seconds of the training loop alone, as the tool tells them; None where it does not."""
    if name == "ptl":
        found = list((folder / ".ptl").glob("runs/*/run.json"))
        stages = json.loads(found[0].read_text(encoding="utf-8"))["stages"] if found else []
        return sum(stage["training"]["seconds"] for stage in stages) or None
    if name == "cookbook":
        metrics = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return sum(json.loads(line)["time/finish_batch"] for line in metrics) or None
    told = re.findall(r"train_runtime['\"]?\s*[:=]\s*['\"]?([\d:.]+)", said)
    told += re.findall(r"Training complete: \d+ steps, ([\d.]+)s", said)
    if not told:
        return None
    seconds = 0.0
    for part in told[-1].split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def versions(environment: Path) -> dict[str, str]:
    """Versions of what decides in an environment."""
    names = "trl axolotl llamafactory tinker tinker-cookbook transformers peft torch accelerate"
    code = (
        "import importlib.metadata as m, json\n"
        "known = {d.metadata['Name'].lower().replace('_', '-'): d.version"
        " for d in m.distributions()}\n"
        f"print(json.dumps({{n: known[n] for n in {names.split()} if n in known}}))"
    )
    command = [str(environment / "bin" / "python"), "-c", code]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(made.stdout))


if __name__ == "__main__":
    main()
