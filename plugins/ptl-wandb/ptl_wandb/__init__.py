"""The tracker `wandb`: a run of Weights & Biases for each run of a recipe."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain_recipes.plugin import (
    CheckpointLogged,
    EvalLogged,
    NoteLogged,
    PluginConfig,
    RunEnded,
    RunStarted,
    Sample,
    SamplesLogged,
    StageEnded,
    StageStarted,
    StepMetrics,
    Tracker,
    UsageError,
    hookimpl,
)

PTL_API = 1
KEY = "WANDB_API_KEY"
"""The environment variable with the key."""
MODE = "WANDB_MODE"
"""The environment variable that decides where the recipe does not."""
FINISH_SECONDS = 45.0
"""How long the end of a run waits for what is to be sent: less than ptl waits for a tracker."""
KEPT = "told.json"
"""The file, in the tracker's folder of a run, that says what was handed to W&B."""
KEEP_SECONDS = 5.0
"""How often it is written, and by how much it is behind: wandb has its own process write, and a
machine that dies may take along what that has not written. Told twice is better than never."""


class WeightsAndBiases(Tracker):
    """Logs curves, evals, replies and checkpoints to Weights & Biases, online or into files.

    The run there is named as the run here. Its config has the recipe's options; curves are named
    `STAGE/...` over `STAGE/step`; evals are curves too, and in the summary with their intervals;
    replies are tables. A run that was interrupted goes on under the same id. Of the console, the
    command line, the machine and the repository nothing is sent. Offline nothing is asked of the
    network and no key is needed: `wandb sync` sends the files later.
    """

    name = "wandb"
    requires = ("wandb",)
    extra = "wandb>=0.31"

    class Config(PluginConfig):
        """Options of wandb."""

        project: str = Field(default="posttrain_recipes", min_length=1, max_length=128)
        """The project that the run stands in."""
        entity: str | None = None
        """The team or user that it belongs to; by default the key's."""
        mode: Literal["online", "offline"] | None = None
        """`online` needs the key, in the environment variable WANDB_API_KEY; `offline` writes files
        into the run's directory. By default what WANDB_MODE says, else online."""
        group: str | None = None
        """What W&B shows the run among; by default the recipe's name."""
        tags: list[str] = []
        """Tags of the run."""
        samples: int = Field(default=32, ge=0)
        """How many samples of each evaluation, or of each step that shows some, go into a table."""

    config: Config
    _run: Any = None
    _kept: _Kept

    @property
    def mode(self) -> str:
        """`online` or `offline`."""
        return self.config.mode or os.environ.get(MODE) or "online"

    def check(self) -> None:
        """A key is there, where one is needed."""
        if self.mode not in ("online", "offline"):
            raise UsageError(
                f"tracker 'wandb': {MODE} is {self.mode!r}",
                hint="set it to online or offline, or write {use: wandb, mode: offline}",
            )
        if self.mode == "online" and not os.environ.get(KEY):
            raise UsageError(
                f"tracker 'wandb': the environment variable {KEY} is not set",
                hint=f"export {KEY}=..., or write {{use: wandb, mode: offline}}",
                code="not-set",
            )

    def run_started(self, run: RunStarted) -> None:
        """Open the run there."""
        # Read when wandb is imported: it tells its makers of errors, and of how it is used.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._kept = _Kept(run.folder / KEPT, run.run_id)
        self._run = wandb.init(
            id=self._kept.id,
            name=run.run_id,
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group or run.recipe,
            job_type="recipe",
            notes=run.description or None,
            tags=self.config.tags,
            config={**run.params, **run.tags},
            dir=str(run.folder),
            # Offline there is nobody to ask; the id is the same one all the same.
            resume="allow" if self.mode == "online" else None,
            settings=_settings(self.mode),
        )
        self._file("recipe.yaml", run.resolved_yaml)

    def _file(self, name: str, text: str) -> None:
        path = Path(self._run.dir) / name
        path.write_text(text, encoding="utf-8")
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def stage_started(self, stage: StageStarted) -> None:
        """Its options, and that its curves go by its own steps."""
        options = {f"{stage.stage}/{name}": value for name, value in stage.params.items()}
        self._run.config.update(options, allow_val_change=True)
        step = f"{stage.stage}/step"
        self._run.define_metric(step, hidden=True)
        self._run.define_metric(f"{stage.stage}/*", step_metric=step)

    def log_metrics(self, found: StepMetrics) -> None:
        """A row of the history; what it has already is left out."""
        self._log(found.stage, found.step, found.values)
        self._kept.write_behind()

    def _log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        names = {f"{stage}/{name}": value for name, value in values.items()}
        new = {name: value for name, value in names.items() if self._kept.is_new(name, step)}
        if new:
            self._run.log({**new, f"{stage}/step": step})

    def log_eval(self, found: EvalLogged) -> None:
        """A curve from before over during to after; intervals are in the summary."""
        values = {}
        for metric, one in found.metrics.items():
            name = f"eval/{found.name}/{metric}"
            values[name] = one.value
            if found.when != "during":
                place = f"{found.stage}/{name}/{found.when}"
                self._run.summary[place] = one.value
                self._run.summary[f"{place}_low"] = one.low
                self._run.summary[f"{place}_high"] = one.high
        self._log(found.stage, found.step, values)
        for text in found.notes:
            self._note(found.stage, f"{found.name}: {text}")
        self._kept.write_behind()

    def log_samples(self, shown: SamplesLogged) -> None:
        """A table; a note says where there are more than it has."""
        if not self.config.samples:
            return
        import wandb

        columns, rows = _table(shown.samples, self.config.samples)
        name = f"samples/{shown.name}-{shown.when}"
        self._log(shown.stage, shown.step, {name: wandb.Table(columns=columns, data=rows)})
        if len(shown.samples) > len(rows):
            self._note(shown.stage, f"{name}: the first {len(rows)} of each time alone")

    def log_checkpoint(self, saved: CheckpointLogged) -> None:
        """Its address, in the summary."""
        self._run.summary[f"{saved.stage}/checkpoint"] = saved.uri
        self._run.summary[f"{saved.stage}/checkpoint_step"] = saved.step

    def log_note(self, note: NoteLogged) -> None:
        """A sentence, in the summary."""
        self._note(note.stage, f"warning: {note.text}" if note.warning else note.text)

    def _note(self, stage: str, text: str) -> None:
        notes = self._kept.notes.setdefault(stage, [])
        if text not in notes:
            notes.append(text)
        self._run.summary[f"{stage}/notes"] = list(notes)

    def stage_ended(self, stage: StageEnded) -> None:
        """Its status, in the summary."""
        self._run.summary[f"{stage.stage}/status"] = stage.status

    def run_ended(self, run: RunEnded) -> None:
        """The report, the status, and the end of the run there."""
        if run.report:
            self._file("report.md", run.report)
        self._run.summary["status"] = run.status
        if run.error:
            self._run.summary["error"] = run.error
        try:
            self._run.finish(exit_code=0 if run.status == "finished" else 1)
        finally:
            # What was not sent in time lies in wandb's files.
            self._kept.write()


def _settings(mode: str) -> Any:
    """Nothing is sent that the recipe did not say: no console, command line, machine, packages or
    repository."""
    import wandb

    return wandb.Settings(
        mode=mode,
        console="off",
        silent=True,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        reinit="create_new",  # a program that has a run of its own open keeps it
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


class _Kept:
    """What was handed to W&B of a run, and under which id; it outlives the process.

    Metrics of steps are known by their last step. Those of evals, which are told in any order, and
    tables are known one by one.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        # A number by chance: on the server two machines may each have a `sft-1`.
        self.id: str = kept.get("id") or f"{_word(run_id)}-{os.urandom(4).hex()}"
        self.last: dict[str, int] = kept.get("last", {})
        self.single: dict[str, list[int]] = kept.get("single", {})
        self.notes: dict[str, list[str]] = kept.get("notes", {})
        self._behind = self._text()
        self._written = 0.0
        self.write()

    def is_new(self, name: str, step: int) -> bool:
        """Whether it has yet to be handed over; asked once for each."""
        if re.match(r"[^/]+/(eval|samples)/", name):
            steps = self.single.setdefault(name, [])
            new = step not in steps
            steps += [step] if new else []
            return new
        new = step > self.last.get(name, -1)
        self.last[name] = max(step, self.last.get(name, -1))
        return new

    def _text(self) -> str:
        kept = {"id": self.id, "last": self.last, "single": self.single, "notes": self.notes}
        return json.dumps(kept)

    def write_behind(self) -> None:
        """Now and then, have on the disk what was so a while ago."""
        if time.monotonic() - self._written >= KEEP_SECONDS:
            self._put(self._behind)
            self._behind = self._text()

    def write(self) -> None:
        """Have it on the disk as it is."""
        self._put(self._text())

    def _put(self, text: str) -> None:
        """As a whole or not at all."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)
        self._written = time.monotonic()


def _word(run_id: str) -> str:
    """A run's name as a part of an id, which W&B keeps below 128 characters without signs."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", run_id)[:100]


def _table(samples: Sequence[Sample], most: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: prompt, reply, what was expected, whether it was cut, scores."""
    scores = sorted({name for sample in samples[:most] for name in sample.scores})
    rows = [
        [
            "\n".join(f"{message.role}: {message.content}" for message in sample.prompt),
            sample.completion,
            sample.answer or "",
            sample.truncated,
            *(float(sample.scores[n]) if n in sample.scores else None for n in scores),
        ]
        for sample in samples[:most]
    ]
    return ["prompt", "reply", "expected", "cut", *scores], rows


@hookimpl
def ptl_trackers() -> list[type[Tracker]]:
    """The trackers of this package."""
    return [WeightsAndBiases]
