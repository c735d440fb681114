"""The plan as jobs of a cluster (submitit): an array of the steps that others need, then an array of the others.

Each job is one run, with the same lock and log as under the runner; a preempted job is queued again and resumes. The
local executor runs the jobs on this machine and waits for them.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from console.errors import InputError, in_a_line
from studies.attempt import run_here
from studies.commands import Commands
from studies.places import Places, short
from studies.plan import PRUNE, Plan, Step
from studies.version import REPOSITORY

ARRAY = 1000
"""Largest number of jobs in an array, by SLURM's default."""


@dataclass(frozen=True)
class Job:
    """The function of a job, which submitit pickles and calls."""

    plan: Plan
    places: Places
    commands: Commands
    threads: int

    def __call__(self, run: str) -> str | None:
        """Run the step of this id; None if it has a result, else the reason why not."""
        step = self.plan.by_id()[run]
        need = self.plan.need(step)
        if need is not None and not self.places.made(need, step.sparsity or 0).exists():
            what = "mask" if need.kind == PRUNE else "smaller model"
            return f"its {what} is missing: {need.id} did not make it ({short(self.places.log(need.id))} says why)"
        return run_here(step, self.plan, self.places, self.commands, self.threads)

    def checkpoint(self, run: str) -> Any:
        """Called by submitit when the job is preempted: queue it again; the scripts resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


def submit_steps(
    plan: Plan, places: Places, commands: Commands, steps: list[Step], queue: Namespace
) -> dict[str, str | None]:
    """Submit the steps; returns id -> job id on a cluster, or with the local executor why it failed (None: done).

    queue: the options of `experiments.py submit`.
    """
    executor = make_executor(places, queue)
    from submitit.core.utils import FailedJobError

    job = Job(plan, places, commands, queue.cores)
    users = plan.users()
    needed = [step for step in steps if step.id in users]
    tasks = [step for step in steps if step.id not in users]
    found: dict[str, str | None] = {}
    before: list[Any] = []
    for stage in (needed, tasks):
        if not stage:
            continue
        if before and queue.cluster == "slurm":
            arrays = ":".join(dict.fromkeys(submitted.job_id.split("_")[0] for submitted in before))
            # afterany, not afterok: one failed mask must not hold back the tasks of all other masks.
            executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{arrays}"})
        before = []
        at_once = ARRAY if queue.cluster == "slurm" else queue.parallel
        for part in (stage[start : start + at_once] for start in range(0, len(stage), at_once)):
            try:
                jobs = executor.map_array(job, [step.id for step in part])
            except FailedJobError as error:
                raise InputError(
                    f"the cluster refused the jobs ({in_a_line(error)}): check --partition, --cores, --memory_gb, "
                    "--gpus and --minutes"
                ) from error
            before += jobs
            for step, submitted in zip(part, jobs, strict=True):
                found[step.id] = submitted.job_id if queue.cluster == "slurm" else _wait(submitted)
    return found


def make_executor(places: Places, queue: Namespace) -> Any:
    """submitit's executor with the options `queue`; InputError without submitit or without the cluster."""
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "submitting jobs needs the package submitit: pip install submitit, or write the plan with "
            "`experiments.py shell`"
        ) from error
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(REPOSITORY) not in paths:  # jobs unpickle classes of this package
        os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, paths)])
    try:
        executor = submitit.AutoExecutor(folder=places.work / "jobs" / "%j", cluster=queue.cluster)
    except RuntimeError as error:
        raise InputError(f"there is no {queue.cluster} here ({error}): try --cluster local, or `shell`") from error
    executor.update_parameters(
        name=places.grid, timeout_min=queue.minutes, gpus_per_node=queue.gpus, cpus_per_task=queue.cores,
        mem_gb=queue.memory_gb, slurm_array_parallelism=queue.parallel,
        **({"slurm_partition": queue.partition} if queue.partition else {}),
    )  # fmt: skip
    return executor


def _wait(job: Any) -> str | None:
    """What a job returned; if it raised, the last line of its traceback."""
    error = job.exception()
    if error is None:
        return job.result()
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
