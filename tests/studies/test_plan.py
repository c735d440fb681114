"""A grid's plan: numbers counted by hand, masks shared, and names that follow the content of what defines a run."""

import json
import shutil
from collections import Counter

import pytest
import yaml

import configs.schema
import models
from console.errors import InputError
from studies.commands import ScriptCommands, write_config
from studies.grid import check_grid, read_grid
from studies.identity import Sources
from studies.places import Places
from studies.plan import PRUNE, check_config, check_configs, expand
from studies.version import REPOSITORY
from tests.studies.fakes import COUNT, SMALL, make

EXPERIMENTS = REPOSITORY / "configs" / "experiments"


def plan_of(**changes):
    return expand(check_grid({**SMALL, **changes}, "small", "small.yaml"))


def kinds(plan):
    return dict(Counter(step.kind for step in plan.steps))


def test_numbers_counted_by_hand():
    """omp needs no data and draws nothing: one mask and one zero-shot evaluation for both seeds."""
    plan = plan_of()
    assert kinds(plan) == {PRUNE: 3, "zero_shot": 6, "image_classification": 8}
    assert len(plan.steps) == COUNT
    assert kinds(plan_of(dense=True)) == {PRUNE: 3, "zero_shot": 7, "image_classification": 10}
    assert kinds(plan_of(finetune=False)) == {PRUNE: 3, "zero_shot": 6}
    assert kinds(plan_of(tasks=[])) == {PRUNE: 3}
    assert kinds(plan_of(pruners=[], dense=True)) == {"zero_shot": 1, "image_classification": 2}


def test_rows_with_random_weights(tmp_path):
    """Next to the dense ones: zero-shot once, since all draw the same weights, finetuning for both seeds."""
    plan = plan_of(pruners=[], random=True)
    assert kinds(plan) == {"zero_shot": 1, "image_classification": 2}
    assert kinds(plan_of(dense=True, random=True)) == {PRUNE: 3, "zero_shot": 8, "image_classification": 12}
    assert {step.label for step in plan.steps} == {"random weights"}
    assert not {step.id for step in plan.steps} & {step.id for step in plan_of(pruners=[], dense=True).steps}
    commands = ScriptCommands(Places(tmp_path, tmp_path, "small"))
    for step in plan.steps:
        line = " ".join(commands(step, None))
        assert ("--weights random" if step.kind == "zero_shot" else "--dense -pre random") in line
        assert "--mask" not in line


def test_tasks_by_model():
    plan = plan_of(
        models=["dino-mini", "xvlm-mini", "clip-mini"],
        tasks={"dino-mini": ["zero_shot"], "xvlm-mini": ["retrieval", "vqa"], "clip-mini": ["zero_shot", "retrieval"]},
        pruners=["rand"],
    )
    assert kinds(plan) == {PRUNE: 6, "zero_shot": 8, "retrieval": 8, "vqa": 4}


def test_masks_are_shared():
    plan = plan_of()
    steps, users = plan.by_id(), plan.users()
    assert sorted(len(found) for found in users.values()) == [4, 4, 6]
    for prune, found in users.items():
        assert {step.sparsity for step in found} == {50, 75} == set(steps[prune].sparsities)
        assert {step.kind for step in found} == {"zero_shot", "image_classification"}
    for step in plan.steps:
        if step.needs is not None:
            assert plan.steps.index(steps[step.needs]) < plan.steps.index(step)


def test_variants():
    variants = {
        "deep": {"pruner": "omp", "sparsities": [95]},
        "prior": {"pruner": "omp", "allocation": "multimodal"},
        "pairs": {"pruner": "snip", "allocation": "2:4", "sparsities": [50]},
    }
    plan = plan_of(variants=variants, tasks=["zero_shot"], seeds=[0])
    assert kinds(plan) == {PRUNE: 4, "zero_shot": 2 + 2 + 1 + 2 + 1}, "deep is in omp's own pruning"
    omp = next(step for step in plan.steps if step.kind == PRUNE and step.pruner == "omp" and not step.allocation)
    assert omp.sparsities == (50, 75, 95)
    assert {step.label for step in plan.steps} == {"omp", "snip", "deep", "prior", "pairs"}


IDS = {"dino-mini": "configs/experiments/ids/dino-mini.json"}


def test_rows_that_prune_while_training():
    """No prune step, and no zero-shot numbers: 2 methods x 2 sparsities x 2 seeds, each with a mask of its own."""
    plan = plan_of(progressive=["platon", "hydra"], options={"platon": {"interval": 5}})
    new = [step for step in plan.steps if step.while_training]
    assert len(plan.steps) == COUNT + 8 == COUNT + len(new)
    assert {step.kind for step in new} == {"image_classification"}
    assert all(step.needs is None for step in new)
    assert {step.like for step in new} == {step.like for step in plan.steps if step.kind == "image_classification"}
    assert {(step.label, step.config.get("progressive", {}).get("interval")) for step in new} == {
        ("platon", 5),
        ("hydra", None),
    }
    assert not {step.id for step in new if step.pruner == "platon"} & {
        step.id for step in plan_of(progressive=["platon"]).steps
    }


def test_sections_are_for_rows_that_prune():
    section = {"prune": "taylor", "interval": 3, "beta1": 0.85}
    plan = plan_of(progressive=["platon"], dense=True, overrides={"image_classification": {"progressive": section}})
    for step in (step for step in plan.steps if step.kind == "image_classification"):
        assert step.config.get("progressive") == ({"interval": 3, "beta1": 0.85} if step.while_training else None)
    plain = {step.id for step in plan_of(progressive=["platon"], dense=True).steps}
    assert {step.id in plain for step in plan.steps if step.while_training} == {False}
    assert {step.id in plain for step in plan.steps if not step.while_training} == {True}


def test_set_changes_a_grid_and_its_text(tmp_path):
    from studies.plan import plan_of as read

    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    changes = ["seeds=[3, 4]", "sparsities=[50]"]
    plan, text = read(str(path), tmp_path / "hashes.json", changes)
    assert {step.sparsity for step in plan.steps if step.sparsity} == {50}
    assert yaml.safe_load(text) == SMALL | {"seeds": [3, 4], "sparsities": [50]}
    assert read(str(path), tmp_path / "hashes.json")[1] == path.read_text()
    with pytest.raises(InputError, match=r"unknown key 'seed' \(did you mean 'seeds'\?\)"):
        read(str(path), tmp_path / "hashes.json", ["seed=3"])


def test_dimensions_are_an_axis():
    """snip, omp and platon compete for weights; wanda cuts each row by itself."""
    plan = plan_of(pruners=["snip", "omp", "wanda"], progressive=["platon"], ids=["none", IDS])
    labels = dict.fromkeys(step.label for step in plan.steps)
    assert list(labels) == ["snip", "snip + ID", "omp", "omp + ID", "wanda", "platon", "platon + ID"]
    assert all((step.ids is not None) == step.label.endswith(" + ID") for step in plan.steps)
    plan = plan_of(progressive=["platon"], ids=["none", IDS["dino-mini"]], weighted=["platon"])
    assert {step.label for step in plan.steps} == {"omp", "snip", "platon", "platon + ID"}
    only = plan_of(pruners=["omp"], ids=[IDS])
    assert {step.label for step in only.steps} == {"omp + ID"}


def test_names_follow_the_values_of_dimensions(tmp_path):
    def ids(path, **power):
        plan = plan_of(pruners=["omp"], progressive=["platon"], ids=[{"dino-mini": str(path)}], overrides=power)
        return [step.id for step in plan.steps]

    file = json.loads((REPOSITORY / IDS["dino-mini"]).read_text())
    before = ids(REPOSITORY / IDS["dino-mini"])
    (tmp_path / "ids.json").write_text(json.dumps(file | {"samples": 7}))
    assert ids(tmp_path / "ids.json") == before, "what it says of its making changes no mask"
    file["dimensions"] = {name: value + 1 for name, value in file["dimensions"].items()}
    (tmp_path / "ids.json").write_text(json.dumps(file))
    assert not set(ids(tmp_path / "ids.json")) & set(before)
    squared = ids(REPOSITORY / IDS["dino-mini"], prune={"id_power": 2.0})
    assert [name.startswith("image_classification-dino-mini-platon") for name in before] == [
        one == other for one, other in zip(before, squared, strict=True)
    ]
    (tmp_path / "ids.json").write_text(json.dumps(file | {"model": "blip-mini"}))
    with pytest.raises(InputError, match=r"ids\.json was measured on blip-mini, not on dino-mini"):
        ids(tmp_path / "ids.json")
    with pytest.raises(InputError, match=r"small\.yaml: ids: .*missing\.json cannot be read"):
        ids(tmp_path / "missing.json")


def test_variants_of_some_tasks():
    plan = plan_of(
        pruners=["omp"],
        tasks=["zero_shot", "image_classification"],
        variants={"before": {"pruner": "lamp", "tasks": ["zero_shot"]}},
        sparsities=[75],
        seeds=[0],
    )
    assert {(step.label, step.kind) for step in plan.steps if not step.makes} == {
        ("omp", "zero_shot"),
        ("omp", "image_classification"),
        ("before", "zero_shot"),
    }


def test_variants_of_some_models():
    plan = plan_of(
        models=["dino-mini", "xvlm-mini"],
        pruners=[],
        tasks={"dino-mini": ["image_classification"], "xvlm-mini": ["retrieval"]},
        variants={
            "vision": {"pruner": "magnitude", "options": {"modality": "vision"}},
            "fusion": {"pruner": "magnitude", "options": {"modality": "fusion"}, "models": ["xvlm-mini"]},
        },
        seeds=[0],
    )
    assert kinds(plan) == {"image_classification": 2, "retrieval": 4}
    assert {step.config["progressive"]["modality"] for step in plan.steps if step.model == "dino-mini"} == {"vision"}


def test_two_names_for_the_same_runs():
    with pytest.raises(InputError, match="'omp' and 'again' are the same runs"):
        plan_of(variants={"again": {"pruner": "omp"}})

    with pytest.raises(InputError, match="'snip' and 'global' are the same runs"):
        plan_of(variants={"global": {"pruner": "snip", "allocation": "global"}})  # its own


def test_options_that_change_nothing_change_no_name(tmp_path):
    def ids(**options):
        return {step.id for step in plan_of(pruners=["chita", "omp"], options=options).steps}

    scratch, batches = {"chita": {"scratch_dir": str(tmp_path)}}, {"omp": {"num_batches": 5}}
    assert ids() == ids(**scratch) == ids(**batches) == ids(chita={"epochs": 1}), "it has one round anyway"
    assert not ids(chita={"epochs": 2}) & {name for name in ids() if "chita" in name}
    assert not ids(chita={"num_batches": 5}) & {name for name in ids() if "chita" in name}


def test_devices_are_part_of_a_finetuning(tmp_path):
    one, two = plan_of(), plan_of(devices=2)
    for first, second in zip(one.steps, two.steps, strict=True):
        assert (first.id == second.id) == (first.kind != "image_classification")
    commands = ScriptCommands(Places(tmp_path, tmp_path, "g"))
    for plan, devices in ((one, False), (two, True)):
        for step in plan.steps:
            command = commands(step, plan.need(step))
            assert ("--devices" in command) == (devices and step.kind != "zero_shot")


def test_a_local_folder_is_known_by_its_content(tmp_path):
    def defined():
        return Sources().model(f"hf:{tmp_path}")

    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = defined()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert defined() != first
    (tmp_path / "model.safetensors").write_bytes(b"one")
    assert defined() == first


def test_commands_are_those_of_the_scripts(tmp_path):
    """Every command is accepted by the script that it names, and says what the plan says."""
    import captioning
    import image_classification
    import prune
    import retrieval
    import vqa
    from evaluation import zero_shot

    scripts = {"captioning": captioning, "retrieval": retrieval, "vqa": vqa, "prune": prune}
    scripts |= {"image_classification": image_classification, "zero_shot": zero_shot}
    grid = {
        **SMALL,
        "models": ["xvlm-mini", "dino-mini"],
        "tasks": {
            "xvlm-mini": ["retrieval", "captioning", "vqa", "zero_shot"],
            "dino-mini": ["image_classification:flowers102"],
        },
        "dense": True,
        "debug": True,
        "variants": {"prior": {"pruner": "omp", "allocation": "multimodal"}},
        "progressive": ["platon"],
        "ids": ["none", {name: f"configs/experiments/ids/{name}.json" for name in ("xvlm-mini", "dino-mini")}],
    }
    plan = expand(check_grid(grid, "g", "g.yaml"))
    places = Places(tmp_path / "results", tmp_path / "work", "g")
    commands = ScriptCommands(places, "cpu", 2)
    for step in plan.steps:
        name = step.kind.partition(":")[0]
        write_config(step, places)
        command = commands(step, plan.need(step))
        args = scripts[name].parse_args(command[3 if name == "zero_shot" else 2 :])
        assert args.model == step.model
        if name == "prune":
            assert [float(s) for s in args.sparsities] == list(step.sparsities)
            assert (args.pruner, args.allocation, args.seed) == (step.pruner, step.allocation, step.seed)
            assert args.ids == step.ids
        elif name == "zero_shot":
            assert args.dense == (step.needs is None) == (not args.masks)
            others = [one for one in plan.steps if (one.kind, one.model) == (step.kind, step.model) and one != step]
            others = [(one, plan.need(one)) for one in others if one.needs is not None]
            if step.needs is not None:
                several = scripts[name].parse_args(commands(step, plan.need(step), others)[3:])
                made = [places.made(need, one.sparsity) for one, need in ((step, plan.need(step)), *others)]
                assert several.masks == list(map(str, made)) and len({need.id for _, need in others}) > 1
                assert several.json == [str(places.output(one)) for one in (step, *(one for one, _ in others))]
        else:
            assert args.dense == (step.label == "dense")
            assert (args.mask is None) == (step.needs is None)
            made = (step.pruner, step.sparsity, step.ids) if step.while_training else (None, None, None)
            assert (args.prune, args.sparsity, args.ids) == made
            assert (args.seed, args.debug, args.accelerator) == (step.seed, True, "cpu")


def test_masks_lie_where_prune_puts_them(tmp_path):
    from pruners.outputs import Outputs

    places = Places(tmp_path, tmp_path, "g")
    variants = {"pairs": {"pruner": "snip", "allocation": "2:4", "sparsities": [50]}}
    plan = plan_of(variants=variants, ids=["none", IDS])
    for step in (step for step in plan.steps if step.kind == PRUNE):
        folder, ids = str(places.of(step.id) / "masks"), step.ids is not None
        outputs = Outputs.of(folder, step.model, step.pruner, step.allocation, step.seed, ids=ids)
        for sparsity in step.sparsities:
            assert places.made(step, sparsity) == outputs.mask(sparsity / 100)


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """Configurations that may be changed."""
    folder = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", folder)
    monkeypatch.setattr(configs.schema, "CONFIGS", folder)
    return folder / "dino-mini"


def names(**changes):
    return [step.id for step in plan_of(**changes).steps]


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_names_follow_values_and_not_comments(own_configs):
    before = names()
    for name in ("prune", "model", "image_classification", "zero_shot"):
        path = own_configs / f"{name}.yaml"
        path.write_text("# another comment\n\n" + path.read_text() + "\n# and one more\n")
    assert names() == before
    changed(own_configs / "prune.yaml", "num_workers: 0", "num_workers: 3")
    assert names() == before, "loader processes change no mask"
    changed(own_configs / "image_classification.yaml", "epochs: 6", "epochs: 7")
    new = names()
    assert [old.startswith("image") for old in before] == [a != b for a, b in zip(before, new, strict=True)]


def test_a_pruner_depends_on_its_own_options_only(own_configs):
    before = names()
    changed(own_configs / "prune.yaml", "epochs: 15", "epochs: 16")
    assert names() == before, "itersnip's rounds are nothing to omp and snip"
    changed(own_configs / "prune.yaml", "num_batches: 32", "num_batches: 31")
    new = names()
    kept = [a == b for a, b in zip(before, new, strict=True)]
    assert kept == ["-omp-" in name for name in before], "omp looks at no data; snip and all that uses its masks does"


@pytest.mark.parametrize("allocation", ["das", "ecoflap"])
def test_allocations_that_rank_layers_use_data(allocation):
    """Also of a pruner that looks at no data itself: masks of every seed, and of what was calibrated."""
    variants = {"ranked": {"pruner": "omp", "allocation": allocation}}

    def ids(**changes):
        return {step.id for step in plan_of(pruners=[], tasks=[], variants=variants, **changes).steps}

    assert len(ids()) == len(SMALL["seeds"])
    assert not ids() & ids(overrides={"prune": {"num_batches": 3}})
    assert not ids() & ids(options={"omp": {"num_batches": 3}})


def test_pruned_convolutions_are_in_every_name():
    changes = {"models": ["timm:convnext_tiny"], "tasks": []}
    assert not set(names(**changes)) & set(names(**changes, overrides={"prune": {"conv": True}}))


def test_names_follow_weights_and_version(tmp_path, monkeypatch):
    before = names()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dino-mini.safetensors").write_bytes(b"other")
    monkeypatch.chdir(tmp_path)
    assert not set(names()) & set(before), "a file of the working directory goes before the shipped one"
    monkeypatch.chdir(REPOSITORY)
    assert names() == before
    monkeypatch.setattr("studies.version.RESULTS_VERSION", 7)
    assert not set(names()) & set(before)


def test_overrides_reach_the_configuration():
    plan = plan_of(
        overrides={
            "image_classification": {"epochs": 1, "recipe": {"lr": 0.5}},
            "dino-mini/image_classification": {"epochs": 2},
            "prune": {"num_batches": 3},
        }
    )
    for step in plan.steps:
        if step.kind == "image_classification":
            digits = step.config["datasets"]["digits"]
            assert (step.config["epochs"], step.config["recipe"]["lr"]) == (2, 0.5)
            assert (digits["epochs"], digits["recipe"]["lr"]) == (2, 0.5), "it has values of its own"
            assert digits["recipe"]["lr_scale"] != step.config["recipe"]["lr_scale"]
            assert step.config["recipe"]["schedule"]["decay"] == "cosine", "what is not overridden stays"
        if step.kind == PRUNE:
            assert step.config["num_batches"] == 3


def test_what_changes_nothing_is_told():
    plan = plan_of(
        overrides={"image_classification": {"epochs": 1}, "prune": {"num_batches": 3}, "retrieval": {"epochs": 3}},
        options={"tamt": {"nonsense": 1}},
    )
    overrides, options = sorted(plan.grid.notes, key=lambda note: "options" in note)
    assert overrides.endswith("overrides of 'retrieval' change nothing: it is not among the tasks")
    assert options.endswith("options of 'tamt' change nothing: it is not among the pruners")


BAD = [
    ({"modles": []}, "unknown key 'modles' (did you mean 'models'?)"),
    ({"models": ["dino-mimi"]}, "unknown model 'dino-mimi' (did you mean 'dino-mini'?)"),
    ({"pruners": ["multiflo"]}, "unknown pruner 'multiflo' (did you mean 'multiflow'?)"),
    ({"tasks": ["zero-shot"]}, "unknown task 'zero-shot' (did you mean 'zero_shot'?)"),
    ({"tasks": ["retrieval"]}, "'dino-mini' has no configuration for 'retrieval'"),
    ({"tasks": ["image_classification:flower102"]}, "unknown data set 'flower102' (did you mean 'flowers102'?)"),
    ({"tasks": ["image_classification", "image_classification:flowers102"]}, "are the same for dino-mini: leave one"),
    ({"devices": 0}, "devices must be at least 1"),
    ({"tasks": {"xvlm-mini": ["vqa"]}}, "tasks are given for 'xvlm-mini'"),
    ({"tasks": "retrieval"}, "'tasks' must be a list"),
    ({"sparsities": [0.75]}, "sparsity 0.75 is below 1 %"),
    ({"sparsities": [75, 75]}, "sparsity 75 is given twice"),
    ({"seeds": [1, 1]}, "1 is given twice"),
    ({"seeds": [-1]}, "seeds must be 0 or more"),
    ({"seeds": ["one"]}, "must be a whole number"),
    ({"seeds": []}, "the grid has no runs, since 'seeds' is empty"),
    ({"pruners": []}, "the grid has no runs, since 'pruners' is empty"),
    ({"sparsities": []}, "the grid has no runs, since 'sparsities' is empty"),
    ({"models": []}, "the grid has no runs, since 'models' is empty"),
    ({"options": {"snap": {}}}, "unknown pruner 'snap' (did you mean 'snip'?)"),
    ({"options": {"omp": {"epochs": 3}}}, "options of omp: unknown key 'epochs'"),
    ({"variants": {"v": {"pruner": "omp", "allocation": "globl"}}}, "unknown allocation 'globl'"),
    ({"variants": {"v": {"pruner": "omp", "allocation": "2:4"}}}, "the pattern 2:4 has a sparsity of exactly 50 %"),
    ({"variants": {"snip": {"pruner": "omp"}}}, "the variant 'snip' has the name of a pruner"),
    ({"overrides": {"retreival": {}}}, "unknown task 'retreival' (did you mean 'retrieval'?)"),
    ({"overrides": {"xvlm/prune": {}}}, "'xvlm' is none of the grid's models"),
    ({"overrides": {"prune": {"repair": "dsnot"}}}, "overrides of prune: 'repair' cannot be set there: leave it out"),
    ({"overrides": {"dino-mini/prune": {"seed": 3}}}, "overrides of dino-mini/prune: 'seed' cannot be set there"),
    ({"variants": {"v": {"pruner": "omp", "overrides": {"zero_shot": {"seed": 3}}}}}, "'seed' cannot be set there"),
    ({"pruners": ["platon"]}, "pruners: platon prunes while training: name it under 'progressive'"),
    ({"progressive": ["omp"]}, "progressive: omp prunes before training: name it under 'pruners'"),
    ({"progressive": ["plato"]}, "unknown pruner 'plato' (did you mean 'platon'?)"),
    ({"progressive": ["platon"], "tasks": ["zero_shot"]}, "'platon' prunes while a task is finetuned, and none is"),
    ({"progressive": ["platon"], "options": {"platon": {"betta1": 1}}}, "unknown key 'betta1' (did you mean 'beta1'"),
    ({"progressive": ["platon"], "options": {"platon": {"settle": 0}}}, "options of platon: settle must be above 0"),
    ({"progressive": ["platon"], "options": {"platon": {"sparsity": 50}}}, "'sparsity' is set by the grid"),
    ({"variants": {"v": {"pruner": "platon", "allocation": "global"}}}, "v prunes while training, which has no alloc"),
    ({"variants": {"v": {"pruner": "omp", "models": ["blip"]}}}, "variants: 'blip' is none of the models"),
    ({"variants": {"v": {"pruner": "omp", "tasks": ["vqa"]}}}, "variants: 'vqa' is none of the tasks"),
    ({"ids": []}, "ids: give none, a file"),
    ({"ids": [7]}, "ids: give none, a file, or a mapping from models to files, not 7"),
    ({"ids": [IDS, "other.json"]}, "ids: give none, a file (or a mapping from models to files), or both"),
    ({"ids": [{"blip-mini": "x.json"}]}, "ids: there is no file for dino-mini"),
    ({"ids": [IDS], "weighted": ["platon"]}, "weighted: unknown row 'platon'"),
    ({"weighted": ["omp"]}, "weighted: no file is named under 'ids'"),
    (
        {"pruners": ["wanda"], "ids": [IDS], "weighted": ["wanda"]},
        "weighted: --ids changes nothing under the allocation",
    ),
    ({"pruners": ["sparsegpt"], "ids": [IDS], "weighted": ["sparsegpt"]}, "solves each layer by itself"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_input(change, words):
    with pytest.raises(InputError) as caught:
        check_grid({**SMALL, **change}, "small", "small.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("small.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_classification": {"epoch": 2}}, "unknown key 'epoch' (did you mean 'epochs'?)"),
        ({"zero_shot": {"images": "many"}}, "'images' must be a whole number"),
        ({"prune": {"num_batches": 0}}, "num_batches must be at least 1, not 0"),
        ({"image_classification": {"recipe": {"lr": "1e-5"}}}, "write 1.0e-5"),
    ],
)
def test_overrides_that_the_scripts_would_refuse(overrides, words):
    """Told before anything runs; what is right passes."""
    for step in plan_of().steps:
        check_config(step.kind, step.config, "here")
    (kind,) = overrides
    step = next(step for step in plan_of(overrides=overrides).steps if step.kind == kind)
    with pytest.raises(InputError) as caught:
        check_config(step.kind, step.config, "here")
    assert words in str(caught.value)


def test_all_configurations_of_a_plan_are_checked():
    plan = plan_of(overrides={"image_classification": {"epoch": 2}})
    with pytest.raises(InputError, match=r"small\.yaml: image_classification of dino-mini: unknown key 'epoch'"):
        check_configs(list(plan.steps), plan.grid.path)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_grids(path):
    """Counted by hand, rows x sparsities x seeds x tasks x models; four methods have one mask for all seeds."""
    by_hand = {
        "main": {PRUNE: 2 * (4 + 6 * 3), "tasks": 2 * 3 * 10 * 3 * 3, "dense": 2 * 3 * 3},
        "dino": {PRUNE: 4 + 6 * 3, "tasks": 3 * 10 * 3 * 3, "dense": 3 * 3},
        "mini": {
            PRUNE: 3 * (4 + 7 * 3),
            "tasks": (2 * 3 + 1) * 11 * 4 * 3 + 3 * (4 + 7 * 3) * 4,
            "dense": (2 * 3 + 1) * 3 + 3,
        },
        "ablation": {PRUNE: 2 * (6 * 3 + 1), "tasks": 2 * 2 * (6 * 3 + 1) + 2 * 1 * 7 * 2 * 3, "dense": 2 * 1 + 2 * 3},
        "smoke": {PRUNE: 2, "tasks": 5, "dense": 0},
        "progressive": {PRUNE: 3 * (1 + 3 * 3), "tasks": 5 * (4 + 4 + 2) * 3 * 3, "dense": 5 * 3},
        "modality": {PRUNE: 0, "tasks": (2 + 3) * 3 * 3, "dense": 2 * 3},
        "prompts": {PRUNE: 2 * (2 + 3 * 3), "tasks": 2 * (6 * 2 + 2 * 4) * 4 * 3, "dense": 2 * 6 * 3},
        "structured": {  # of clip-mini, xvlm-mini and dino-mini
            PRUNE: (1 + 3 * 16 + 7) + (1 + 3 * 16) + (1 + 3 * 13),
            "tasks": (87 + 21 + 171 + 27) + (87 + 171) + (72 + 153),
            "dense": 3 * (1 + 3),
        },
        "real": {
            PRUNE: 4 * (4 + 9 * 3),
            "tasks": 4 * (4 + 9 * 3) * 4 + 13 * 4 * 3,
            "dense": 4 * (1 + 1) + (1 + 1) * 3,
        },
        "real-ablation": {PRUNE: (1 + 5) * 3 + 1, "tasks": ((1 + 5) * 3 + 1) * 2, "dense": 0},
        "real-structured": {PRUNE: 1 + 3, "tasks": 2 * 2 * 2 * 3 - 2 * 2, "dense": 1 + 3},
        "mini-results": {PRUNE: 3 * 3, "tasks": (2 * 3 + 2) * 3 * 2, "dense": 2 * 3 + 2},
    }
    plan = expand(read_grid(path))
    for step in {(step.kind, step.model, step.pruner): step for step in plan.steps}.values():
        check_config(step.kind, step.config, path.name)
    kind = {"dense": "dense", "random weights": "dense"}
    found = Counter(PRUNE if step.makes else kind.get(step.label, "tasks") for step in plan.steps)
    assert {key: found[key] for key in (PRUNE, "tasks", "dense")} == by_hand[path.stem]


def test_a_made_grid_is_read(tmp_path):
    plan, places = make(tmp_path)
    assert places.grid == plan.grid.name == "small"
    assert yaml.safe_load((tmp_path / "small.yaml").read_text()) == SMALL
    assert models.read_config("dino-mini", None)[0]["family"] == "dino"
