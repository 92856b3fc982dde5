"""The tracker `tensorboard`: what a run logs, as event files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
FLUSH_SECONDS = 5
"""TensorBoard sees what is written so many seconds later, at evals and checkpoints at once."""
LONGEST = 4000
"""Characters of a prompt or reply that are shown."""


class TensorBoard(Tracker):
    """Writes curves, evals with their intervals, and replies as event files of TensorBoard.

    A folder for each stage, so that the curves of stages lie over one another. Evals are `eval/...`
    with the ends of their intervals in `uncertainty/...`, as in MLflow, from before over during to
    after. A run that was interrupted goes on in new files beside the old ones, and what those have
    is not written twice.
    """

    name = "tensorboard"
    requires = ("tensorboard",)
    extra = "tensorboard>=2.16"

    class Config(PluginConfig):
        """Options of tensorboard."""

        logdir: str | None = None
        """Where each run gets a folder, from the recipe's directory; by default
        `trackers/tensorboard` in the run's own."""
        samples: int = Field(default=16, ge=0)
        """How many samples of each evaluation, or of each step that shows some, are written."""

    config: Config
    _root: Path
    _run: Mapping[str, Any]
    _folders: dict[str, _Folder]

    def check(self) -> None:
        """Refuse a file in the place of the folder."""
        where = self._logdir
        for place in (where, *where.parents) if where else ():
            if place.exists() and not place.is_dir():
                raise UsageError(
                    f"tracker 'tensorboard': {place} is a file, and 'logdir' needs a folder",
                    hint="name another one, or none for the run's own",
                    code="wrong-value",
                )

    @property
    def _logdir(self) -> Path | None:
        named = self.config.logdir
        return None if named is None else self.base_dir / Path(named).expanduser()

    def run_started(self, run: RunStarted) -> None:
        """The recipe, as text."""
        self._root = self._logdir / run.run_id if self._logdir else run.folder
        self._run, self._folders = run.params, {}
        root = self._folder("")
        root.text("recipe", 0, f"{run.description}\n\n{_code(run.resolved_yaml)}")
        root.flush()

    def _folder(self, stage: str) -> _Folder:
        if stage not in self._folders:
            self._folders[stage] = _Folder(self._root / stage)
        return self._folders[stage]

    def stage_started(self, stage: StageStarted) -> None:
        """The options, for the page HParams."""
        self._folder(stage.stage).hparams({**self._run, **stage.params})

    def log_metrics(self, found: StepMetrics) -> None:
        """A scalar for each."""
        folder = self._folder(found.stage)
        for name, value in found.values.items():
            folder.scalar(name, found.step, value)

    def log_eval(self, found: EvalLogged) -> None:
        """Three scalars for each metric: what it is, and the ends of its interval."""
        folder = self._folder(found.stage)
        for metric, one in found.metrics.items():
            name = f"{found.name}/{metric}"
            folder.scalar(f"eval/{name}", found.step, one.value)
            folder.scalar(f"uncertainty/{name}_low", found.step, one.low)
            folder.scalar(f"uncertainty/{name}_high", found.step, one.high)
        for text in found.notes:
            folder.note(f"{found.name}: {text}")
        folder.flush()

    def log_samples(self, shown: SamplesLogged) -> None:
        """A table, which says how many there are beside those that it shows."""
        if self.config.samples:
            text = _table(shown.samples, self.config.samples)
            tag = f"samples/{shown.name}-{shown.when}"
            self._folder(shown.stage).text(tag, shown.step, text)

    def log_checkpoint(self, saved: CheckpointLogged) -> None:
        """Its address."""
        folder = self._folder(saved.stage)
        folder.text("checkpoint", saved.step, _code(saved.uri))
        folder.flush()

    def log_note(self, note: NoteLogged) -> None:
        """A sentence among the texts."""
        self._folder(note.stage).note(f"**warning:** {note.text}" if note.warning else note.text)

    def stage_ended(self, stage: StageEnded) -> None:
        """What waits is written."""
        self._folder(stage.stage).flush()

    def run_ended(self, run: RunEnded) -> None:
        """The report, and the end of every file."""
        if run.report:
            self._folder("").text("report", 0, run.report)
        if run.error:
            self._folder("").note(f"**{run.status}:** {run.error}")
        for folder in self._folders.values():
            folder.close()


class _Folder:
    """Event files of one stage. A new one is begun with the first thing that no other has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[tuple[str, Any]] = set()
        """What is there: a tag with its step, a note with its text."""
        self._writer: Any = None
        for tag, step, text in _kept(path):
            self._known.add((tag, text if tag == "notes" else step))

    def scalar(self, tag: str, step: int, value: float) -> None:
        """A number; NaN and infinities too, which TensorBoard marks."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._is_new(tag, step):
            self._write(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Markdown."""
        if self._is_new(tag, step):
            self._write_text(tag, step, text)

    def note(self, text: str) -> None:
        """Markdown, once; its step is its number."""
        if self._is_new("notes", text):
            number = sum(tag == "notes" for tag, _ in self._known)
            self._write_text("notes", number, text)

    def hparams(self, params: Mapping[str, Any]) -> None:
        """Options of a stage, once."""
        # Its public `api` imports TensorFlow.
        from tensorboard.plugins.hparams import summary_v2

        if self._is_new("_hparams_/session_start_info", 0):
            self._write(summary_v2.hparams_pb(dict(params), trial_id=str(self.path)), 0)

    def _is_new(self, tag: str, at: Any) -> bool:
        new = (tag, at) not in self._known
        self._known.add((tag, at))
        return new

    def _write_text(self, tag: str, step: int, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text import metadata

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        about = metadata.create_summary_metadata(display_name=None, description=None)
        self._write(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)]), step)

    def _write(self, summary: Any, step: int) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self.path), flush_secs=FLUSH_SECONDS)
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Have it on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Nothing more comes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _kept(folder: Path) -> Sequence[tuple[str, int, str]]:
    """What the event files of a folder have, each as tag, step and text: of a file that was cut
    when the machine died, what is whole."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                text = value.tensor.string_val[0].decode() if value.tensor.string_val else ""
                found.append((value.tag, event.step, text))
    return found


def _code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _table(samples: Sequence[Sample], most: int) -> str:
    """Prompts, replies and scores as a table in Markdown."""
    scores = sorted({name for sample in samples[:most] for name in sample.scores})
    rows = [["prompt", "reply", "expected", *scores], ["---"] * (3 + len(scores))]
    for sample in samples[:most]:
        cut = " (cut at the token limit)" if sample.truncated else ""
        asked = sample.prompt[-1].content if sample.prompt else ""
        row = [_cell(asked), _cell(sample.completion) + cut, _cell(sample.answer or "")]
        row += [f"{sample.scores[n]:.4g}" if n in sample.scores else "" for n in scores]
        rows.append(row)
    more = len(samples) - most
    left_out = f"\n{more:,} more of {len(samples):,} are not shown here\n" if more > 0 else ""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + left_out


def _cell(text: str) -> str:
    """Text of a model as text: neither markup nor the end of a row."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
    return html.escape(short).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


@hookimpl
def ptl_trackers() -> list[type[Tracker]]:
    """The trackers of this package."""
    return [TensorBoard]
