"""Imports point downwards, there is no circle, and importing a module changes nothing in the process."""

import ast
import graphlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("analysis", "configs", "input_pipeline", "models", "training")
PROGRAMS = sorted(path.stem for path in ROOT.glob("*.py"))
MAY_IMPORT = {
    "models": {"models"},
    "configs": {"configs"},
    "input_pipeline": {"input_pipeline"},
    "training": {"training", "models", "input_pipeline", "configs"},
    "analysis": {"analysis", "training", "models", "input_pipeline", "configs"},
    "": {"analysis", "training", "models", "input_pipeline", "configs", *PROGRAMS},
}
"""The folders from which the modules of each folder may import; '' stands for the programs."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
MODULES |= {name: ROOT / f"{name}.py" for name in PROGRAMS}


def imports(name):
    """Returns the names of all modules that a module imports, including those in functions, and those that are ours."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` needs the module; of any other name it needs the package.
            found |= {member if member in MODULES else node.module for member in members}
    return found, {module for module in found if module in MODULES}


def test_there_are_no_circles():
    """Imports inside functions count too, so that such an import cannot hide a circle."""
    graph = {name: imports(name)[1] - {name} for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(MODULES) and len(order) > 50


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    folder = name.split(".")[0] if name not in PROGRAMS else ""
    upwards = {module for module in imports(name)[1] if module.split(".")[0] not in MAY_IMPORT[folder]}
    assert not upwards, f"{name} imports {', '.join(sorted(upwards))}"


def top_level_names(name):
    """Returns the names that a module has once it is imported."""
    return {
        inner.id if isinstance(inner, ast.Name) else inner.asname or inner.name.split(".")[0]
        for statement in ast.parse(MODULES[name].read_text()).body
        for inner in ast.walk(statement)
        if isinstance(inner, (ast.Name, ast.alias))
    } | {
        statement.name
        for statement in ast.parse(MODULES[name].read_text()).body
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef))
    }


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_only_what_there_is(path):
    """Most benchmarks run in no test, because they need PyTorch, a GPU or an idle machine."""
    wanted = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in wanted:
        if node.module in MODULES:
            names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
            missing = names - top_level_names(node.module)
            assert not missing, f"{node.module} has no {', '.join(sorted(missing))}"


def module_level_calls(name):
    """Returns the calls that a module makes on import, except those in assignments, decorators and classes."""
    statements, calls = list(ast.parse(MODULES[name].read_text()).body), []
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            calls.append(ast.unparse(statement.value.func))
        if isinstance(statement, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = statement.targets if not isinstance(statement, ast.AugAssign) else [statement.target]
            calls += [ast.unparse(target) for target in targets if not isinstance(target, (ast.Name, ast.Tuple))]
        if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            if ast.unparse(getattr(statement, "test", ast.Constant(0))) != "__name__ == '__main__'":
                parts = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
                parts += [handler.body for handler in getattr(statement, "handlers", [])]
                statements += [inner for part in parts for inner in part]
    return calls


@pytest.mark.parametrize("name", MODULES)
def test_a_module_calls_nothing_for_its_effect_when_it_is_imported(name):
    """A module may define flags and a function's derivatives, and print a note that a library is missing."""
    allowed = re.compile(r"print|flags\.(mark_flag_as_required|DEFINE_\w+)|\w+\.def(vjp|jvp|jvps)")
    assert not [call for call in module_level_calls(name) if not allowed.fullmatch(call)]


WATCH = """
import importlib, json, os, signal, sys, threading, warnings
first, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name in first:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # a library that is missed softly
import cv2, jax, numpy, PIL.Image
from absl import flags

def state():
    return {
        "environment": dict(os.environ),
        "JAX's configuration": {name: repr(value) for name, value in jax.config.values.items()},
        "hooks": [repr(getattr(sys, name)) for name in ("excepthook", "unraisablehook", "displayhook")],
        "thread hook": repr(threading.excepthook),
        "signal handlers": {number: repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "OpenCV's threads": cv2.getNumThreads(),
        "Pillow's bound": PIL.Image.MAX_IMAGE_PIXELS,
        "warning filters": repr(warnings.filters),
        "NumPy's error handling": numpy.geterr(),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "streams": repr((sys.stdin, sys.stdout, sys.stderr)),
        "paths": (sys.path, os.getcwd()),
        "threads": threading.active_count(),
    }

before = state()
for name in modules:
    importlib.import_module(name)
    for flag in flags.FLAGS.get_flags_for_module(name):  # each program is a process of its own
        delattr(flags.FLAGS, flag.name)
    changed = [part for part, value in state().items() if value != before[part]]
    if changed:
        print(name, "changes", ", ".join(changed))
        before = state()
"""


def test_importing_changes_nothing_in_the_process():
    """Runs in its own process and imports the libraries first, because their changes to the process do not count."""
    libraries = {name for module in MODULES for name in imports(module)[0] if name.split(".")[0] not in MAY_IMPORT[""]}
    command = [sys.executable, "-c", WATCH, json.dumps(sorted(libraries)), json.dumps(sorted(MODULES))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr[-2000:]


def test_evaluating_and_predicting_import_no_training_code_and_no_slow_library():
    """These programs start fast: their first line comes as soon as JAX, Flax and Orbax are imported."""
    training = {f"training.{name}" for name in ("step", "program", "evaluation", "feed", "tensorboard")}
    slow = {"grain", "matplotlib", "sklearn", "tensorboardX", "tensorflow_datasets", "huggingface_hub"}
    for program in ("evaluate", "predict"):
        code = f"import json, sys, {program}; print(json.dumps(list(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert not (training | slow) & set(json.loads(result.stdout)), program
