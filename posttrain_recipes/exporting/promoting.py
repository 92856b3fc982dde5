"""`ptl promote`: a stage's checkpoint in MLflow's model registry, with its evals and gates.

What failed a gate, or is worse than what it started from, is not registered unless it is asked for
anyway; then its version says so.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from posttrain_recipes import models
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.inference.target import find
from posttrain_recipes.models.registered import check_alias, check_name
from posttrain_recipes.planning import gates
from posttrain_recipes.planning.plans import local_model
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.report import TableRow
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.tracking.mlruns import results_table
from posttrain_recipes.tracking.registered import RegisteredCheckpoint, register


@dataclass(frozen=True)
class Promoted:
    """A version of a registered model."""

    name: str
    version: str
    alias: str | None
    checkpoint: RegisteredCheckpoint
    new: bool
    """False: this checkpoint had been registered under that name before."""
    against: tuple[str, ...] = ()
    """What speaks against it, and was overruled."""
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """What recipes call it."""
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


@dataclass(frozen=True)
class StageEvidence:
    """What a run found of a stage."""

    rows: list[TableRow] = field(default_factory=list)
    checked: list[gates.Gate] = field(default_factory=list)

    @classmethod
    def of(cls, record: RunRecord, stage: StageRecord) -> StageEvidence:
        """Of a stage's own results, and of the bounds on the stages that lead to it."""
        path = gates.path_to(stage.name, gates.starts_of(record.resolved), record)
        names = {one.name for one in path}
        return cls(
            [row for row in report.rows(record) if row.stage == stage.name],
            [gate for gate in gates.check(record) if gate.stage in names],
        )

    @property
    def against(self) -> list[str]:
        """What speaks against it, in words."""
        failed = [str(gate) for gate in self.checked if not gate.passed]
        return failed + [
            f"{row.label} got worse: {report.show(row.before, row.percent)} before, "
            f"{report.show(row.after, row.percent)} after"
            for row in self.rows
            if row.verdict == "worse"
        ]

    def tags(self) -> dict[str, str]:
        """To search for in the registry."""
        found = {
            f"eval.{row.eval}/{row.metric}{when}": f"{estimate.value:.6g}"
            for row in self.rows
            for when, estimate in ((".before", row.before), ("", row.after))
            if estimate is not None
        }
        worse = [row.label for row in self.rows if row.verdict == "worse"]
        kept = all(gate.passed for gate in self.checked)
        return {
            **found,
            "ptl.gates": ("passed" if kept else "failed") if self.checked else "none",
            "ptl.worse": ", ".join(worse) or "-",
        }

    def markdown(self) -> str:
        """For the version's page."""
        results = {
            f"{row.eval}/{row.metric}": {
                when: estimate
                for when, estimate in (("before", row.before), ("after", row.after))
                if estimate is not None
            }
            for row in self.rows
        }
        lines = [results_table(results)] if results else ["No eval measured it.\n"]
        return "\n".join(
            [*lines, *(f"- {'kept' if g.passed else '**failed**'}: {g}" for g in self.checked)]
        )


def promote(
    target: str, name: str, home: Path, *, alias: str | None = None, anyway: bool = False
) -> Promoted:
    """Register the checkpoint of a run or of one of its stages.

    Args:
        target: RUN, which means its last stage, or RUN/STAGE.
        alias: moved to this version.
        anyway: also where a gate failed or a result got worse.

    Raises:
        UsageError: there is no such checkpoint, or the name or the alias cannot be used.
        PtlError: something speaks against it, or the registry does not answer.
    """
    check_name(name)
    if alias is not None:
        check_alias(alias)
    found = find(target, home)
    run = found.run
    if run is None:
        raise UsageError(
            f"{target} is no run, and what is not of a run has no evals and no gates to register",
            hint="name a run of 'ptl runs', or one of its stages: RUN/STAGE",
            code="no-such-run",
        )
    stage = run.stage(found.said.partition("/")[2])
    made = stage.checkpoint
    if stage.method is None or made is None or not made.state_uri or not made.sampler_uri:
        raise UsageError(
            f"{found.said} trained nothing, so there is no checkpoint to register",
            hint="name a stage that trains: 'ptl show " + run.id + "'",
            code="no-such-checkpoint",
        )
    if stage.status not in ("finished", "reused"):
        raise PtlError(
            f"{found.said} is {stage.status}: its evals are not all done",
            hint=f"'ptl run' goes on with it; 'ptl show {run.id}' says how far it came",
            code="no-such-checkpoint",
        )
    judged = StageEvidence.of(run, stage)
    against = judged.against
    if against and not anyway:
        raise PtlError(
            f"{found.said} is not registered",
            why="; ".join(against),
            hint="train one that does better, or give --anyway: its version then says so",
            code="gate-failed",
        )
    base = made.base_model
    if models.is_path(base):
        base = str(local_model(base, Path(run.path).parent))
    checkpoint = RegisteredCheckpoint(
        state=made.state_uri,
        sampler=made.sampler_uri,
        base_model=base,
        rank=int(stage.inputs.get("lora", {}).get("rank", 0)),
        engine=run.engine,
        host=socket.gethostname(),
        home=str(home.resolve()),
        run=run.id,
        stage=stage.name,
    )
    version, new = register(
        home,
        name,
        checkpoint,
        tags={"ptl.recipe": run.recipe, "ptl.fingerprint": stage.fingerprint, **judged.tags()},
        description=f"{found.said}, of {base}.\n\n{judged.markdown()}",
        tracking_id=stage.tracking_id,
        alias=alias,
    )
    notes = [] if judged.rows else ["no eval measured it, so nothing tells how good it is"]
    if run.engine == "local":
        notes.append("the weights stay in this home: who starts from it needs them there")
    return Promoted(name, version, alias, checkpoint, new, tuple(against), tuple(notes))
