"""The plan as a shell script of plain commands, for other schedulers and machines.

A run whose last output exists is skipped; a failed run does not stop the others; each logs to its folder.
`experiments.py collect` then makes the results, as does a later `experiments.py run`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from console.words import counted
from studies.attempt import prepare
from studies.commands import Commands, script
from studies.places import Places, short
from studies.plan import Plan, Step
from studies.version import REPOSITORY

HEAD = """#!/bin/sh
# {title}
# Written by `experiments.py shell`. Each line is one run: lines may be removed, or divided among machines.
cd {here} || exit 2
PYTHON=${{PYTHON:-{python}}}
export PYTHONPATH={repository}${{PYTHONPATH:+:$PYTHONPATH}}
failed=0

run() {{  # run FOLDER LAST_OUTPUT COMMAND...
    folder=$1 output=$2; shift 2
    # an attempt without an end was killed, maybe after this file but before its last
    if [ -e "$output" ] && ! tail -n 1 "$folder/attempts.jsonl" 2>/dev/null | grep -q '"started"'; then return; fi
    start=$(date +%s)
    printf '{{"started": "%s"}}\n' "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)" >>"$folder/attempts.jsonl"
    "$@" >>"$folder/log.txt" 2>&1
    code=$?
    printf '{{"seconds": %d, "code": %d}}\\n' $(($(date +%s) - start)) "$code" >>"$folder/attempts.jsonl"
    if [ "$code" -ne 0 ]; then failed=1; echo "failed ($code): $folder/log.txt" >&2; fi
}}

"""

TAIL = """
"$PYTHON" {script} collect {grid} --results {results} --work {work} || failed=1
exit "$failed"
"""


def shell_script(plan: Plan, places: Places, commands: Commands, steps: list[Step], grid: str) -> str:
    """The text of the script; also writes the configurations that its commands read.

    grid: its file, and `--set` if given, as words of a command line.
    """
    lines = [
        HEAD.format(
            title=f"{counted(len(steps), 'run')} of {plan.grid.path}",
            here=shlex.quote(str(Path.cwd())),
            python=shlex.quote(sys.executable),
            repository=shlex.quote(str(REPOSITORY)),
        )
    ]
    users = plan.users()
    for step in sorted(steps, key=lambda step: step.id not in users):
        prepare(step, places)
        command = commands(step, plan.need(step))
        python, *rest = command
        words = ['"$PYTHON"' if python == sys.executable else shlex.quote(python), *map(shlex.quote, rest)]
        folder, last = (shlex.quote(short(path)) for path in (places.of(step.id), last_output(step, places)))
        lines.append(f"run {folder} {last} {' '.join(words)}\n")
    tail = TAIL.format(
        script=shlex.quote(script("experiments.py")),
        grid=grid,
        results=shlex.quote(short(places.results)),
        work=shlex.quote(short(places.work)),
    )
    return "".join(lines) + tail


def last_output(step: Step, places: Places) -> Path:
    """The file that a step writes last."""
    if step.makes:
        return places.made(step, (places.missing(step) or step.sparsities)[-1])
    output = places.output(step)
    return output if output.suffix else places.run_folder(step) / "results.json"
