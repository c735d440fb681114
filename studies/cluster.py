"""The same plan as jobs of a cluster: one array for masks and what else tasks need, then one for these (submitit).

Each job does one run as the runner would, with the same lock and the same log; a job that is preempted is put into the
queue again and goes on. The local executor starts the jobs on this machine and waits for them.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from console.errors import InputError
from studies.attempt import run_here
from studies.commands import Commands
from studies.places import Places, short
from studies.plan import PRUNE, Plan, Step
from studies.version import REPOSITORY

ARRAY = 1000
"""Jobs of an array at most, as SLURM is set up by default."""


@dataclass(frozen=True)
class Job:
    """What a job does when it runs: picklable, and called by submitit there."""

    plan: Plan
    places: Places
    commands: Commands
    threads: int

    def __call__(self, run: str) -> str | None:
        """Run the step of this id; None when its result is there, else why not."""
        step = self.plan.by_id()[run]
        need = self.plan.need(step)
        if need is not None and not self.places.made(need, step.sparsity or 0).exists():
            what = "mask" if need.kind == PRUNE else "smaller model"
            return f"its {what} is missing: {need.id} did not make it ({short(self.places.log(need.id))} says why)"
        return run_here(step, self.plan, self.places, self.commands, self.threads)

    def checkpoint(self, run: str) -> Any:
        """Called by submitit when the job is preempted: the same again; the scripts go on where they were."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


def submit_steps(
    plan: Plan, places: Places, commands: Commands, steps: list[Step], queue: Namespace
) -> dict[str, str | None]:
    """Submit the steps; returns id -> job id on a cluster, or of the local executor why it failed (None: done).

    queue: how jobs are asked for, as `experiments.py submit` takes it.
    """
    executor = make_executor(places, queue)
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
            # Any end will do: what failed is said by the tasks that miss its mask, and the others can run.
            executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{arrays}"})
        before = []
        at_once = ARRAY if queue.cluster == "slurm" else queue.parallel
        for part in (stage[start : start + at_once] for start in range(0, len(stage), at_once)):
            jobs = executor.map_array(job, [step.id for step in part])
            before += jobs
            for step, submitted in zip(part, jobs, strict=True):
                found[step.id] = submitted.job_id if queue.cluster == "slurm" else _wait(submitted)
    return found


def make_executor(places: Places, queue: Namespace) -> Any:
    """What submits jobs as `queue` says; InputError where submitit or the cluster is not there."""
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "submitit is not installed, which talks to the cluster: pip install submitit, or write the plan with "
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
    """What a job returned; where it broke off, the last line of its trace."""
    error = job.exception()
    if error is None:
        return job.result()
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
