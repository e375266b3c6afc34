"""Which rows of a study are averaged, which finished runs it recognises, and what its JSON files say about machines."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from program import ROOT

FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))

# In a process of its own, because the flags of the studies have the names of other programs' flags.
CODE = """
import copy, importlib, json, math, pathlib, sys, tempfile
sys.path.insert(0, "benchmarks/studies")
import degradation
import digits
import ingredients
import lineage
import small_networks
import study
from analysis.summary import summarize
from benchmarks import commands
from training import command_line, configuration

configuration.check_image_size = lambda network, config: None  # traces each network
study.flags.FLAGS(["study.py", "--size=cpu"])
small_networks.register()

CPU = {"platform": "cpu", "devices": ["cpu"], "cpu_cores": 2}
EPYC = CPU | {"processor": "AMD EPYC, AVX2"}
H100 = {"platform": "gpu", "devices": ["NVIDIA H100"], "cpu_cores": 16}

def row(seed, hardware=CPU, steps=8, **others):
    command = f"python train.py --config=configs/cifar10_resnet20.py --config.num_steps={steps} --config.seed={seed}"
    return {"name": "plain20", "seed": seed, "hardware": hardware, "command": command, **others}

def with_config(row):
    return row | {"config": study.config_of(row["command"])}

def groups(*rows):
    return {label: [row["seed"] for row in group] for label, group in study.by_name(list(rows)).items()}

def refusal(first, then, by_hand=False):
    folder = pathlib.Path(tempfile.mkdtemp())
    runs = [study.Run("a", "cifar10_resnet20", options, seed) for options, seed in (first, then)]
    words = [" ".join(study._words(run)) for run in runs]
    config = study.config_of(words[0])
    if by_hand:  # train.py writes its options resolved
        resolved = configuration.resolve_network(study._recipe_of(words[0]), typed=None)
        resolved = configuration.resolve_run(resolved, num_classes=10, num_images=50_000)
        (folder / "config.json").write_text(json.dumps({"config": json.loads(resolved.to_json())}))
    else:
        (folder / "calls.jsonl").write_text(json.dumps({"seconds": 1, "config": config}))
    try:
        return study._check_config(runs[1], folder)
    except ValueError as error:
        return str(error).removeprefix(str(folder))

def refused(run):
    config = importlib.import_module(f"configs.{run.recipe}").get_config()
    words = [word.removeprefix("--config.").split("=", 1) for word in study._words(run) if "--config." in word]
    typed = {name: command_line.parse_option(name, text) for name, text in words}
    config.update(typed)
    try:
        configuration.apply_typed(config, typed)
        configuration.resolve_run(configuration.resolve_network(config, typed), 10, 1437)
    except ValueError as error:
        return str(error)

def evaluations():
    top1 = {"few_images": [0.8, 0.9, 0.7, 0.8], "few_images_ensemble": [0.86, 0.78]}
    top1 |= {"few_images_1_view": [0.8, 0.9, 0.7, 0.8], "few_images_5_views": [0.81, 0.92, 0.71, 0.82]}
    rows = [
        {"name": name, "seed": seed, "hardware": CPU, "command": "", "accuracy_top1": value}
        | ({} if name == "few_images" else {"members": [2 * seed, 2 * seed + 1] if "ensemble" in name else [0, 1]})
        | {"train_accuracy_top1": 1.0, "loss": 0.5}
        for name, values in top1.items()
        for seed, value in enumerate(values)
    ]
    return [claim.result for claim in digits.judge(rows)]

def verdicts(better):
    curve = {"loss": [3, 1], "accuracy_top1": [0, 1], "gradient_norm/conv1": [1, 1]}
    rows = [
        {"name": name, "seed": seed, "hardware": CPU, "command": "", "steps": 20}
        | {"curves": {"train": curve | {"step": [1, 10 + seed + 10 * (name not in better)]}}}
        | {"accuracy_top1": 0.9 + 0.001 * seed - (name not in better) / 2}
        | {"loss": 0.1 * seed + (name not in better), "train_accuracy_top1": 0.5 + 0.001 * seed + (name in better) / 3}
        for seed in (0, 1)
        for name in {name for pair in digits.COMPARISONS for name in (pair.ours, pair.theirs)}
    ]
    claims = digits.judge(rows)
    return [[pair.ours, pair.theirs, claim.holds] for pair, claim in zip(digits.COMPARISONS, claims, strict=True)]

def degradation_study(folder):
    error = {"plain20": 0.1, "plain56": 0.14, "resnet20": 0.089, "resnet56": 0.06, "resnet110": 0.071}
    rows = []
    for seed in (0, 1):
        for model in error:
            test, train = 1 - error[model] - 0.001 * seed, 1 - error[model] / 2 - 0.001 * seed
            curves = {"train": [0.5, train], "evaluation": [0.5, test]}
            curves = {split: {"step": [32_000, 64_000], "accuracy_top1": values} for split, values in curves.items()}
            if seed == 1:  # was stopped after its first step, and resumed
                curves["train"] = {"step": [1, 32_000, 64_000], "accuracy_top1": [0.1, 0.5, train]}
            new = row(seed, H100, 64_000, model=model, dataset="cifar10", seconds=9.0, curves=curves)
            rows.append(new | {"name": model, "steps": 64_000, "accuracy_top1": test, "train_accuracy_top1": train})
    rows = [row for row in rows if (row["model"], row["seed"]) != ("resnet110", 1)]
    degradation.draw(rows, folder / "figure.png")
    table = [[cell.strip() for cell in line.split("|")][1:3] for line in degradation.make_table(rows).splitlines()]
    far = copy.deepcopy([row for row in rows if row["model"] in ("resnet20", "resnet56")])  # seeds 5 points apart
    for each in far:
        each["curves"]["evaluation"]["accuracy_top1"][-1] -= 0.05 * each["seed"]
    claims = [degradation.judge(each) for each in (rows, far, far[:2])]
    return table[2:], *([[claim.claim, claim.holds] for claim in each] for each in claims)

def ingredients_study(folder):
    rows = []
    for name, top1 in (("plain", 0.7), ("cosine", 0.72), ("adamw_cosine", 0.71), ("vit_tiny", 0.5)):
        for seed, machine in ((0, EPYC), (1, EPYC), (0, CPU)):
            if (name, machine) != ("plain", CPU):
                new = {"name": f"{name}_5", "seed": seed, "hardware": machine, "command": "", "dataset": "imagenette"}
                new |= {"accuracy_top1": top1 + 0.01 * seed, "train_accuracy_top1": top1, "examples": 3925}
                curves = {"train": {"step": [10, 20], "accuracy_top1": [0.1, top1]}}
                rows.append(new | {"epochs": 5.002, "steps": 20, "seconds": 9, "curves": curves})
    ingredients.draw(rows, folder / "figure.png")
    table = [[cell.strip() for cell in line.split("|")][1:6] for line in ingredients.make_table(rows).splitlines()]
    return table[2:], [[claim.result, claim.holds] for claim in ingredients.judge(rows)]

OWN = ("resnet18", "vit_tiny", "xception")

def lineage_study(folder):
    names = list(lineage.NETWORKS)
    lineage.read_rates = lambda: {name: {"images_per_second": 150.0} for name in names[1:]}
    lineage.count_millions = lambda name: 10 ** names.index(name)
    runs, rows = lineage.list_runs("cpu"), []
    for run in runs:
        name, _, budget = run.name.rsplit("_", 2)
        top1 = 0.2 + 0.04 * names.index("googlenet" if name == "googlenet_aux" else name) - 0.01 * run.seed
        command = " ".join(study._words(run))
        row = {"name": run.name, "seed": run.seed, "hardware": CPU, "command": command, "examples": 3925}
        row |= {"parameters": 10**6, "epochs": 2.0, "accuracy_top1": top1, "config": study.config_of(command)}
        rows += [row] * (run.seed < (2 if budget == "seconds" else 1))
    lineage.draw(rows, folder / "figure.png")
    guessing = [row | {"accuracy_top1": 0.104} for row in rows if "18_common_epochs" in row["name"]]
    table = [[cell.strip() for cell in line.split("|")] for line in lineage.make_table(rows).splitlines()]
    lineage.read_rates = dict
    root, study.ROOT = study.ROOT, folder
    (folder / "configs").mkdir()
    for member in lineage.NETWORKS.values():
        text = "Measured: 70.1 %." if member.recipe == "resnet18" else "Measured: nothing yet."
        (folder / "configs" / f"{member.recipe}.py").write_text("\\n".join(["A recipe.", text, "More."]))
    lineage.put_into_recipes([row | {"accuracy_top1": 0.09} if "alexnet" in row["name"] else row for row in rows])
    recipes = {path.stem: path.read_text().splitlines() for path in sorted((folder / "configs").iterdir())}
    study.ROOT = root
    return {
        "headings without rates": lineage.make_table(rows).splitlines()[0],
        "recipes": recipes,
        "guesses": next(claim.holds for claim in lineage.judge(guessing)),
        "far from chance": lineage.guesses([{"accuracy_top1": top1, "examples": 3925} for top1 in (0.15, 0.25)]),
        "refused": list(filter(None, (refused(run) for run in runs + lineage.list_runs("full") if run.seed == 0))),
        "steps": {run.name: run.overrides["num_steps"] for run in runs},
        "table": table,
        "claims": {claim.paper: [claim.result, claim.holds] for claim in lineage.judge(rows)},
        "own": {name: lineage.shorten(lineage.NETWORKS[name], 180, 1.0, 112) for name in OWN},
    }

def small(name):
    config = study.base.get_config()
    config.model = name
    summary = summarize(config)
    kernels = [layer.parameters for layer in summary.layers if layer.kernel and layer.kind == "conv"]
    return [summary.macs, summary.receptive_field, sum(kernels[1:])]

here = {"dataset": "image_folder:/a/images"}
print(json.dumps({
    "seeds": groups(with_config(row(0)), row(1), with_config(row(2))),
    "machines": groups(with_config(row(0)), row(1, H100), row(2, EPYC), with_config(row(3))),
    "GPUs": groups(row(0, H100), row(1, H100 | {"processor": "Xeon"})),
    "compared": study.comparable(
        [each | {"name": "a"} for each in (row(0), row(0, EPYC), row(1, EPYC), row(2, EPYC, steps=9))]
        + [each | {"name": "b"} for each in (row(0, EPYC), row(0), row(1, H100))],
        ("a", "b"),
    ),
    "incomparable": study.comparable([row(0), row(0, H100) | {"name": "b"}], ("plain20", "b")),
    "shortened": groups(row(0) | {"steps": 8}, row(1) | {"steps": 4}),
    "options": groups(with_config(row(0)), with_config(row(1, steps=16))),
    "other command": groups({"name": "a", "seed": None, "command": "python evaluate.py"}),
    "portable": [commands.portable(text) for text in sys.argv[1:]],
    "same run": refusal((here, 0), (here, 0)),
    "another dataset": refusal((here, 0), ({"dataset": "image_folder:/b/images"}, 0)),
    "another option": refusal(({}, 0), ({"learning_rate": 0.01}, 0)),
    "same by hand": refusal(({}, 0), ({}, 0), by_hand=True),
    "another option by hand": refusal(({}, 0), ({"learning_rate": 0.01}, 0), by_hand=True),
    "another recipe's way to the same": refusal(({}, 0), ({"learning_rate": 0.1}, 0)),
    "no effect": refusal(({}, 0), ({"log_every_steps": 3}, 0)),
    "verdicts": [study.verdict(*pair) for pair in ((2, 1), (-2, 1), (1, 2), (0, 0), (1, math.nan), (0, math.nan))],
    "refused settings": list(filter(None, map(refused, [
        *(run for run in digits.list_runs("cpu") + ingredients.list_runs("full") if run.seed == 0),
        *(study.Run(name, "cifar10_resnet20", degradation.overrides(name, "short"), 0) for name in degradation.FIRST),
    ]))),
    "settings": [
        *digits.SETTINGS,
        *(f"{setting}_{each}" for setting, evaluations in digits.EVALUATIONS.items() for each in evaluations),
    ],
    "comparisons": verdicts(["resnet56"]),
    "degradation": degradation_study(pathlib.Path(tempfile.mkdtemp())),
    "ingredients": ingredients_study(pathlib.Path(tempfile.mkdtemp())),
    "interval": study.difference([1, 2, 3], [4, 5, 6]),
    "paired interval": study.paired_difference([(1, 4), (2, 5), (3, 5)]),
    "median": study.median_over_steps({"step": [1, 2, 3, 4, 8], "norm": [7, 0.1, 0.3, 0.2, 5]}, "norm", 0, 0.5),
    "evaluations": evaluations(),
    "lineage": lineage_study(pathlib.Path(tempfile.mkdtemp())),
    "small": {name: small(name) for name in small_networks.NETWORKS},
}))
"""
NETWORKS = ("plain20", "plain56", "resnet20", "resnet56", "resnet110")
PATHS = {
    "image_folder:/tmp/x/imagenette2-160": "image_folder:imagenette2-160",
    "--config.dataset=image_folder:/tmp/x/imagenette2-160/": "--config.dataset=image_folder:imagenette2-160",
    "--weights=/a/b.th,../c/d.th,~/e.th": "--weights=b.th,d.th,e.th",
    "/usr/bin/python3 /home/me/train.py": "python3 train.py",
    "--config=configs/resnet50.py": "--config=configs/resnet50.py",
    "imagenette/160px-v2": "imagenette/160px-v2",
}


@pytest.fixture(scope="module")
def found():
    """What the functions of study.py return."""
    command = [sys.executable, "-c", CODE, *PATHS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_only_the_seeds_of_one_setting_on_one_machine_are_averaged(found):
    assert found["seeds"] == {"plain20": [0, 1, 2]}  # row 1 is of an earlier version, which stored no options
    assert found["machines"] == {
        "plain20 (2 CPU cores)": [0, 3],
        "plain20 (1 NVIDIA H100)": [1],
        "plain20 (2 CPU cores, AMD EPYC, AVX2)": [2],
    }
    assert found["GPUs"] == {"plain20 (1 NVIDIA H100)": [0], "plain20 (1 NVIDIA H100, Xeon)": [1]}
    assert found["shortened"] == {"plain20 (steps=8)": [0], "plain20 (steps=4)": [1]}
    assert found["options"] == {"plain20 (num_steps=8)": [0], "plain20 (num_steps=16)": [1]}
    assert found["other command"] == {"a": [None]}


def test_groups_of_one_machine_are_compared(found):
    ours, theirs = found["compared"]
    assert {row["hardware"].get("processor") for row in ours + theirs} == {"AMD EPYC, AVX2"}
    assert [row["seed"] for row in ours] == [0, 1] and [row["seed"] for row in theirs] == [0]
    assert found["incomparable"] is None


def test_a_finished_run_with_other_options_or_another_dataset_is_refused(found):
    assert found["same run"] is found["another recipe's way to the same"] is found["no effect"] is None
    assert "dataset='image_folder:/a/images', not 'image_folder:/b/images'" in found["another dataset"]
    assert "learning_rate=0.1, not 0.01" in found["another option"]
    assert found["same by hand"] is None and "learning_rate=0.1, not 0.01" in found["another option by hand"]


def test_a_verdict_needs_an_interval_that_does_not_include_zero(found):
    assert found["verdicts"] == [
        "yes",
        "no, the opposite",
        "not shown",
        "not shown",
        "yes, too few seeds",
        "not shown",
    ]
    # Welch's interval of two samples of variance 1 and size 3: t with 4 degrees of freedom is 2.776, times sqrt(2 / 3).
    assert found["interval"] == pytest.approx([-3, 2.7764 * (2 / 3) ** 0.5], abs=1e-3)
    # Student's, of -3, -3 and -2 with a deviation of sqrt(1 / 3): t with 2 degrees of freedom is 4.3027.
    assert found["paired interval"] == pytest.approx([-8 / 3, 4.3027 / 3], abs=1e-3)
    assert found["median"] == pytest.approx(0.25)  # of 7, 0.1, 0.3 and 0.2


def test_evaluations_of_the_same_networks_are_compared_in_pairs(found):
    # Five crops: +1, +2, +1 and +2 points; t with 3 degrees of freedom is 3.182. Two ensembles of two: +1 and +3 points
    # above their own members' mean; t with one degree of freedom is 12.706.
    crops, ensembles = found["evaluations"]
    assert crops.endswith("difference +1.50 ± 0.92") and ensembles.endswith("difference +2.00 ± 12.71")


def test_settings_are_valid_and_the_comparisons_of_the_digits_point_the_right_way(found):
    assert found["refused settings"] == []
    for ours, theirs, holds in found["comparisons"]:
        assert {ours, theirs} <= set(found["settings"])
        if "resnet56" in (ours, theirs):  # the fake rows are better for it by every measure
            assert holds == ("yes" if ours == "resnet56" else "no, the opposite")


def test_the_degradation_study_says_whether_the_papers_order_stands(found):
    table, claims, far, alone = found["degradation"]
    assert table == [[name, str(seeds)] for name, seeds in zip(NETWORKS, (2, 2, 2, 2, 1), strict=True)]
    assert [holds for _, holds in claims] == [
        "yes, beyond the seeds' range (training error); yes, beyond the seeds' range (test error)",
        "yes, beyond the seeds' range (training error); yes, beyond the seeds' range (test error)",
        "yes",  # 8.95 %: 8.75 % is published
        "no, it is lower",  # 6.05 %: 6.97 %
        "no, it is higher",  # 7.1 %: 6.61 %
    ]
    assert claims[2][0] == "ResNet-20 has a test error of 8.75 %."
    assert far[0][1] == "yes, beyond the seeds' range (training error); not shown (test error)"
    assert alone[0][1] == "yes, too few seeds (training error); yes, too few seeds (test error)"


def test_an_ingredient_is_compared_with_the_plain_recipe_of_its_machine_and_seeds(found):
    table, claims = found["ingredients"]
    # Two seeds a point apart: half an interval is 12.706 * 0.5; of a difference 4.303 * sqrt(2 * 0.5 / 2). One seed:
    # the binomial interval of 3,925 images.
    assert table == [
        ["plain", "5", "2", "70.5 ± 6.4", ""],
        ["cosine (2 CPU cores, AMD EPYC, AVX2)", "5", "2", "72.5 ± 6.4", "+2.0 ± 3.0"],
        ["cosine (2 CPU cores)", "5", "1", "72.0 ± 1.4", ""],
        ["adamw_cosine (2 CPU cores, AMD EPYC, AVX2)", "5", "2", "71.5 ± 6.4", "+1.0 ± 3.0"],
        ["adamw_cosine (2 CPU cores)", "5", "1", "71.0 ± 1.4", ""],
        ["vit_tiny (2 CPU cores, AMD EPYC, AVX2)", "5", "2", "50.5 ± 6.4", "-20.0 ± 3.0"],
        ["vit_tiny (2 CPU cores)", "5", "1", "50.0 ± 1.6", ""],
    ]
    assert claims == [["71.50 ± 0.71 and 50.50 ± 0.71 % top-1; difference +21.00 ± 3.04", "yes"]]


def test_small_networks_differ_in_what_they_compare_only(found):
    macs, fields, weights = ({name: each[key] for name, each in found["small"].items()} for key in range(3))
    assert fields["filters_3x3"] == fields["filters_7x7"]
    # 27 C^2 and 49 C^2, and the biases: Simonyan and Zisserman 2014, section 2.3.
    assert weights["filters_3x3"] == 2 * (27 * 24**2 + 3 * 24) and weights["filters_7x7"] == 2 * (49 * 24**2 + 24)
    assert macs["bottlenecks"] == pytest.approx(macs["no_bottlenecks"], rel=0.02)
    for name, other in (("lrn", "no_lrn"), ("lrn_255", "no_lrn_255"), ("plain30_he", "plain30_glorot")):
        assert found["small"][name] == found["small"][other]


def test_the_lineage_has_valid_settings_and_names_what_holds(found):
    lineage = found["lineage"]
    assert lineage["refused"] == []
    assert lineage["steps"]["alexnet_common_seconds"] == 141  # 150 images/s, 60 s, 64 images a step
    assert lineage["steps"]["lenet5_own_epochs"] == 296 and "lenet5_own_seconds" not in lineage["steps"]
    # A recipe of 90 epochs in 180 steps, which are one epoch; 64 images of 256, or of 1,024 with AdamW.
    assert lineage["own"]["resnet18"] == {"learning_rate": 0.025, "step_steps": [60, 120], "eval_resize": 128}
    assert lineage["own"]["vit_tiny"]["learning_rate"] == pytest.approx(0.001 / 4)
    assert lineage["own"]["vit_tiny"]["warmup_epochs"] == pytest.approx(8.07 / 90)
    assert lineage["own"]["xception"]["ema_decay"] == 0 and lineage["own"]["xception"]["exponential_epochs"] == 0.02
    # Two seeds, 0.28 and 0.27: t with one degree of freedom is 12.706. One seed: the binomial interval of 3,925 images.
    table = {line[1]: line for line in lineage["table"][2:]}
    assert len(table) == 17 and table["zfnet"][7] == "27.5 ± 6.4" and table["lenet5"][6] == "20.0 ± 1.3"
    assert lineage["claims"]["He 2015, section 4.1"] == [
        "60.00 and 56.00 % top-1 in 2 epochs; 59.50 ± 0.71 and 55.50 ± 0.71 % top-1 in 60 s",
        "yes, too few seeds (2 epochs); yes (60 s)",
    ]
    assert "at chance" not in str(lineage["claims"]) and not lineage["far from chance"]
    assert lineage["guesses"] == "not shown, resnet18 and plain18 still at chance (2 epochs)"
    assert lineage["claims"]["Szegedy 2014, section 5"][1] == "not shown (2 epochs); not shown (60 s)"
    assert lineage["claims"]["Dosovitskiy 2020, section 1"][1].endswith("no, the opposite (60 s)")
    assert lineage["claims"]["Canziani 2017, Fig. 2"][1] == "yes (2 epochs); yes (60 s)"


def test_a_recipe_s_header_says_what_its_short_run_reached(found):
    recipes = found["lineage"]["recipes"]
    assert recipes["zfnet"][1] == (
        'Measured: nothing on ImageNet; 28.0 % of Imagenette at 64 pixels in 2 epochs: docs/results.md, "The lineage".'
    )
    assert "; 9.0 % (chance) of Imagenette at 67 pixels in 2 epochs" in recipes["alexnet"][1]
    assert recipes["resnet18"] == ["A recipe.", "Measured: 70.1 %.", "More."] and recipes["zfnet"][2] == "More."
    assert recipes["vit_s16"][1] == "Measured: nothing yet."  # ViT-Ti took its recipe


def test_the_lineage_s_table_has_no_empty_column_of_rates(found):
    assert "images/s" in found["lineage"]["table"][0] and "images/s" not in found["lineage"]["headings without rates"]


def test_rows_lose_the_folders_of_a_machine(found):
    assert dict(zip(PATHS, found["portable"], strict=True)) == PATHS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stored_results_have_no_paths_of_a_machine(path: pathlib.Path):
    assert not re.findall(r"""["'=:, ](?:/|~/|\.\./)(?:tmp|home|work|root|mnt|data|usr)\b[^"' ]*""", path.read_text())
