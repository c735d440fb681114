"""Grids of smaller models: one table for all shares, tasks that judge them, and rows that learn from dense runs."""

import re

import pytest

from console.errors import InputError
from studies.commands import ScriptCommands, write_config
from studies.grid import check_grid
from studies.places import Places
from studies.plan import expand
from studies.results import has_result, pack
from studies.rows import SHRINK
from studies.shell import shell_script
from studies.sizes import sizes_of
from studies.status import survey
from tests.studies.fakes import Fake, make, told, work
from tests.studies.made import read

GRID = {
    "models": ["dino-mini"],
    "pruners": [],
    "variants": {
        "small": {"pruner": SHRINK, "options": {"criterion": "taylor"}},
        "taught": {"pruner": SHRINK, "options": {"criterion": "taylor"}, "teacher": {"hidden": 0.5}},
        "longer": {
            "pruner": SHRINK,
            "options": {"criterion": "magnitude"},
            "overrides": {"image_classification": {"epochs": 9}},
            "sparsities": [50],
        },
    },
    "options": {SHRINK: {"tower": "both"}},
    "sparsities": [25, 50],
    "tasks": ["zero_shot", "image_classification"],
    "seeds": [0, 1],
    "dense": True,
}


def plan_of(**changes):
    return expand(check_grid({**GRID, **changes}, "g", "g.yaml"))


def steps_of(plan, kind, label=None):
    return [step for step in plan.steps if step.kind == kind and label in (None, step.label)]


def test_a_table_serves_all_shares_and_rows():
    """taylor draws samples, magnitude does not; two rows share taylor's; zero-shot is before training."""
    plan = plan_of()
    assert len(steps_of(plan, SHRINK)) == 2 + 1
    assert all(step.sparsities == (25, 50) for step in steps_of(plan, SHRINK, "small"))
    assert len(steps_of(plan, "zero_shot")) == 1 + 2 * 2
    assert len(steps_of(plan, "image_classification")) == 2 * (1 + 2 + 2 + 1)
    for step in steps_of(plan, "image_classification", "taught"):
        need, teacher = (plan.by_id()[name] for name in step.before)
        assert (need.kind, need.seed) == (SHRINK, step.seed)
        assert (teacher.label, teacher.seed, teacher.kind) == ("dense", step.seed, step.kind)
    assert {step.config["epochs"] for step in steps_of(plan, "image_classification", "longer")} == {9}


def test_names_follow_what_defines_smaller_models():
    def ids(**options):
        return {step.id for step in plan_of(options={SHRINK: {"tower": "both", **options}}).steps}

    assert ids() == ids(scope="global") == ids(repeats=3), "defaults, and how often is timed"
    assert not {name for name in ids() if SHRINK in name} & ids(scope="layer")
    data = plan_of(overrides={"prune": {"sides": {"general": {"labels": 3}}}})
    changed = {step.id for step in data.steps} - ids()
    assert {("taylor" in name, "magnitude" in name) for name in changed} == {(True, False)}


def test_smaller_models_are_run_and_counted(tmp_path):
    plan, places = make(tmp_path, **GRID)
    summary = work(plan, places, tmp_path / "journal")
    assert (summary.failed, len(summary.done)) == ({}, len(plan.steps))
    assert survey(plan, places).missing == []
    pack(places, (tmp_path / "small.yaml").read_text())
    results = read(places.results / "small")
    assert not any("left out" in note for note in results.notes), "rows that are trained otherwise stand in one table"
    (taken, _) = results.prunings_of("dino-mini", "taught")
    assert taken.metrics["25 seconds"] == 4.5
    assert results.kept("dino-mini", "small", 50) == {"vision": 15 / 40}
    ((asked, both),) = sizes_of(results, "dino-mini", ["taught"], [25.0]).items()
    assert (asked, both["parameters"], both["ms 32"]) == (("taught", 25.0), (0.004, 0.001), (9.0, 3.0))
    for step in steps_of(plan, "image_classification"):
        assert places.weights(step).exists() == (step.label == "dense"), "others learn from it"


def test_a_teacher_without_weights_is_trained_again(tmp_path):
    plan, places = make(tmp_path, **GRID)
    work(plan, places, tmp_path / "journal")
    (dense, *_), (taught, *_) = (steps_of(plan, "image_classification", label) for label in ("dense", "taught"))
    places.weights(dense).unlink()
    assert survey(plan, places).missing == [], "nobody needs them any more"
    (places.run_folder(taught) / "results.json").unlink()
    places.result(taught.id).unlink()
    assert survey(plan, places).missing == [dense, taught]
    before = len(told(tmp_path / "journal"))
    assert work(plan, places, tmp_path / "journal").failed == {}
    assert told(tmp_path / "journal")[before:] == [dense.id, taught.id]


def test_a_teacher_that_fails_is_named(tmp_path):
    plan, places = make(tmp_path, **GRID)
    summary = work(plan, places, tmp_path / "journal", fail=("image_classification-dino-mini-dense-seed0",))
    assert sum("its teacher is missing" in why for why in summary.failed.values()) == 2
    assert not has_result(steps_of(plan, "image_classification", "taught")[0], places)


def test_what_others_need_comes_first_in_a_script(tmp_path):
    plan, places = make(tmp_path, **GRID)
    text = shell_script(plan, places, Fake(places, tmp_path / "journal"), list(plan.steps), plan.grid.path)
    runs = re.findall(r"^run \S*/(\S+?) ", text, re.MULTILINE)
    users = plan.users()
    assert sorted(runs, key=lambda name: name not in users) == runs
    assert len(users) == 3 + 2


def test_commands_are_those_of_the_scripts(tmp_path):
    import image_classification
    import shrink
    from evaluation import zero_shot

    plan, places = plan_of(), Places(tmp_path / "results", tmp_path / "work", "g")
    commands = ScriptCommands(places, "cpu")
    for step in plan.steps:
        write_config(step, places)
        need, command = plan.need(step), commands(step, plan.need(step))
        if step.kind == SHRINK:
            args = shrink.parse_args(command[2:])
            assert (args.model, args.command, args.accelerator) == ("dino-mini", "series", "cpu")
            assert [float(s) for s in args.sparsities] == list(step.sparsities)
            continue
        parse = zero_shot.parse_args if step.kind == "zero_shot" else image_classification.parse_args
        args = parse(command[3 if step.kind == "zero_shot" else 2 :])
        small = f"small:{places.made(need, step.sparsity)}" if need else "dino-mini"
        assert (args.model, args.dense) == (small, True)
        if step.teacher:
            assert (args.teacher, args.hidden, args.feat) == ("dino-mini", 0.5, None)
            assert step.teacher in args.teacher_weights


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"options": {"towr": "both"}}, r"options of odd: unknown option 'towr' \(did you mean 'tower'"),
        ({"options": {"scope": "world"}}, "options of odd: .*invalid choice: 'world'"),
        ({"options": {"first": "width"}}, "'first: width' is an order of width and depth"),
        ({"options": {"of": "heads"}}, "'of' is one of width, layers"),
        ({"allocation": "global"}, "odd makes smaller models, which have no allocation"),
        ({"teacher": {"feat": -1}}, "feat must be at least 0"),
        ({"overrides": {"image_clasification": {}}}, "did you mean 'image_classification'"),
    ],
)
def test_refusals(variant, words):
    with pytest.raises(InputError, match=words):
        plan_of(variants={"odd": {"pruner": SHRINK, **variant}})


def test_a_teacher_is_a_dense_row():
    with pytest.raises(InputError, match="'taught' learns from the dense row's runs"):
        plan_of(dense=False)
    with pytest.raises(InputError, match="'taught' learns from the dense row's runs"):
        plan_of(tasks=["zero_shot"])
