import ast
import graphlib
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "googlenet_flax"


def module_name(path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
}


def at_load(node: ast.AST):
    """The nodes below that run when the module is loaded: not those in functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_load(child)


def imports(module: str, walk=ast.walk) -> set[str]:
    """Modules that it imports anywhere, in functions too."""
    names = set()
    for node in walk(TREES[module]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in TREES else node.module)
    return names


def siblings(module: str) -> set[str]:
    """The same, of this package only and without its name."""
    names = (name for name in imports(module) if name.split(".")[0] == "googlenet_flax")
    return {name.removeprefix("googlenet_flax").removeprefix(".") for name in names}


def outsiders(module: str, walk=ast.walk) -> set[str]:
    return {name.split(".")[0] for name in imports(module, walk)}


NEVER = {"configs", "tests", "tensorflow", "keras", "torchvision"}
# What only those need who import an original's weights, or export their own (the extras
# `import` and `export`).
ORIGINALS_ONLY = {"torch", "h5py"}
EXTRAS_ONLY = ORIGINALS_ONLY | {"onnx", "onnxruntime", "google", "safetensors"}
# Run by `python -m`, and so by nobody else.
COMMANDS = {"main", "predict", "import_weights", "benchmark", "dream", "export", "report"}

each_module = pytest.mark.parametrize("module", TREES)


def test_the_modules_are_found():
    expected = {"", ".main", ".train", ".model", ".data", ".data.cifar", ".evaluate"}
    expected |= {".predictor", ".predict", ".warm_start", ".import_weights", ".originals"}
    expected |= {".benchmark", ".command_line", ".cost", ".limits", ".timing"}
    expected |= {".compilation_cache", ".experiment", ".ascent", ".dream"}
    device = ("augment", "crops", "preprocess")
    files = (
        "decode",
        "fabricated",
        "folder",
        "image_set",
        "imagenet",
        "imagenet_builder",
        "picture_set",
        "prepared",
        "read_ahead",
        "records",
    )
    expected |= {f".data.{name}" for name in (*device, *files)}
    pages = ("page", "record", "run_page", "comparison_page", "look_inside")
    expected |= {".report", ".reports", *(f".reports.{name}" for name in pages)}
    originals = ("caffe", "keras", "leaves", "torchvision")
    expected |= {f".originals.{name}" for name in originals}
    exports = ("network", "onnx", "safetensors", "stablehlo")
    expected |= {".export", ".exports"} | {f".exports.{name}" for name in exports}
    assert {f"googlenet_flax{name}" for name in expected} <= set(TREES)


def test_every_package_is_in_the_wheel():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    assert set(settings["tool"]["setuptools"]["packages"]) == packages


@each_module
def test_module_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])


@each_module
def test_nobody_imports_a_command(module):
    assert not siblings(module) & COMMANDS


@each_module
def test_outsiders_that_are_not_for_the_package(module):
    assert not outsiders(module) & NEVER
    flags = "googlenet_flax.command_line"
    assert "ml_collections" not in outsiders(module) or module == flags


@each_module
def test_only_foreign_files_need_packages_of_their_own_and_only_when_called(module):
    if not module.startswith(("googlenet_flax.originals.", "googlenet_flax.exports.")):
        assert not outsiders(module) & EXTRAS_ONLY
    if not module.startswith("googlenet_flax.originals."):
        assert not outsiders(module) & ORIGINALS_ONLY
    assert not outsiders(module, at_load) & EXTRAS_ONLY


def test_imports_in_functions_are_told_from_those_at_load():
    # Otherwise the tests around this one could not fail.
    for name, package in [("caffe", "onnx"), ("keras", "h5py"), ("torchvision", "torch")]:
        module = f"googlenet_flax.originals.{name}"
        assert package in outsiders(module)
        assert "numpy" in outsiders(module, at_load)
    nested = ast.parse("if x:\n try:\n  import a\n except E:\n  f = lambda: b\n")
    assert any(isinstance(node, ast.Import) for node in at_load(nested))
    method = ast.parse("class C:\n def f(self):\n  import a\n")
    assert not any(isinstance(node, ast.Import) for node in at_load(method))


def test_only_the_data_know_tensorflow_datasets():
    users = {module for module in TREES if "tensorflow_datasets" in outsiders(module)}
    assert users
    assert all(module.startswith("googlenet_flax.data.") for module in users)


def test_only_the_reports_draw_and_never_by_global_state():
    users = {module for module in TREES if "matplotlib" in outsiders(module)}
    assert users
    assert all(module.startswith("googlenet_flax.reports.") for module in users)
    assert not any("matplotlib.pyplot" in imports(module) for module in users)


NETWORK = {"errors", "description", "model", "train_step"}
SAVED = {"checkpoint", "workdir"}
START = {"compilation_cache", "cpu_memory"}  # What a command that computes switches on.


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("streams", set()),
        ("errors", {"streams"}),
        ("winograd", set()),
        ("convolution", {"winograd"}),
        ("ops", {"convolution"}),
        ("version", set()),
        ("environment", {"version"}),
        ("layers", {"convolution", "ops"}),
        ("model", {"convolution", "layers", "ops"}),
        ("schedule", {"errors"}),
        ("workdir", {"errors"}),
        ("progress", {"streams"}),
        ("metrics_writer", {"errors"}),
        ("step_profile", {"errors"}),
        ("wandb_mirror", {"errors"}),
        ("config", {"data.augment", "data.crops", "errors", "model"}),
        ("stop_request", set()),
        ("description", {"data.image_set", "data.preprocess", "model"}),
        ("train_step", {"data.augment", "data.preprocess", "errors", "model"}),
        ("checkpoint", {"description", "distributed", "errors", "train_step"}),
        ("predictor", {"data.crops", "data.preprocess", *NETWORK, *SAVED}),
        (
            "predict",
            {"data.crops", "data.decode", "errors", "predictor", "workdir", *START},
        ),
        (
            "evaluate",
            {
                *("data", "data.crops", "data.image_set", "distributed", "predictor"),
                *NETWORK,
                *SAVED,
                *START,
            },
        ),
        (
            "experiment",
            {
                *("data", "data.augment", "data.preprocess", "data.sampler"),
                *("description", "distributed", "evaluate", "schedule", "train_step"),
            },
        ),
        ("warm_start", {"data.preprocess", *NETWORK, *SAVED}),
        (
            "import_weights",
            {
                "data.imagenet",
                "data.preprocess",
                *NETWORK,
                *SAVED,
                *(f"originals.{name}" for name in ("caffe", "keras", "torchvision")),
                "originals.leaves",
            },
        ),
        ("exports.network", {"data.preprocess", "description", "model", "version"}),
        (
            "exports.onnx",
            {"convolution", "errors", "exports.network", "model", "ops"},
        ),
        ("exports.safetensors", {"errors", "exports.network"}),
        ("exports.stablehlo", {"exports.network"}),
        (
            "export",
            {
                *("convolution", "errors", "predictor", "workdir", "exports.network"),
                *(f"exports.{name}" for name in ("onnx", "safetensors", "stablehlo")),
            },
        ),
        ("compilation_cache", set()),
        ("cpu_memory", set()),
        ("command_line", {"errors", *START}),
        ("main", {"command_line", "distributed", "dry_run", "errors", "train"}),
        ("distributed", {"errors", "streams"}),
        ("timing", set()),
        ("limits", {"timing"}),
        ("cost", {"model"}),
        ("endpoints", {"model"}),
        ("table1", {"cost", "endpoints", "model"}),
        ("dry_run", {"config", "cost", "experiment", "table1"}),
        ("ascent", {"data.preprocess", "endpoints", "model"}),
        (
            "dream",
            {
                *("ascent", "data.decode", "description", "endpoints", "errors", "model"),
                *("predictor", "workdir", *START),
            },
        ),
        (
            "benchmark",
            {
                "cpu_memory",
                *("command_line", "config", "cost", "data.fabricated", "errors"),
                *("experiment", "limits", "schedule", "timing", "train_step"),
            },
        ),
        (
            "report",
            {
                *("data", "data.decode", "evaluate", "predictor", "streams"),
                *(f"reports.{name}" for name in ("answers", "look_inside", "page")),
                *(f"reports.{name}" for name in ("comparison_page", "record", "run_page")),
                *NETWORK,
                *SAVED,
                *START,
            },
        ),
        # Inside the reports: numbers, figures, pages.
        ("reports.style", set()),
        ("reports.page", {"errors", "reports.style"}),
        ("reports.record", {"checkpoint", "metrics_writer", "workdir"}),
        ("reports.answers", {"data", "errors", "evaluate", "predictor"}),
        ("reports.curves", {"reports.record", "reports.style"}),
        ("reports.answer_figures", {"reports.answers", "reports.style"}),
        (
            "reports.look_inside",
            {
                *("data.preprocess", "endpoints", "model", "train_step"),
                *("reports.answers", "reports.style"),
            },
        ),
        (
            "reports.run_page",
            {
                *("description", "environment", "train_step", "version"),
                *(f"reports.{name}" for name in ("answer_figures", "answers", "curves")),
                *(f"reports.{name}" for name in ("look_inside", "page", "record")),
            },
        ),
        (
            "reports.comparison_page",
            {f"reports.{name}" for name in ("curves", "page", "record", "run_page")},
        ),
        # Inside the data: reading files, and what runs on the device.
        ("data.crops", set()),
        ("data.preprocess", {"data.crops"}),
        ("data.augment", {"data.crops", "data.preprocess"}),
        ("data.sampler", set()),
        ("data.splits", {"errors"}),
        ("data.image_set", {"errors"}),
        ("data.decode", {"errors"}),
        ("data.imagenet", set()),
        ("data.archives", set()),
        ("data.cifar", {"data.archives", "errors"}),
        ("data.imagenet_builder", {"data.archives", "data.imagenet", "errors"}),
        ("data.records", {"data.decode"}),
        (
            "data.prepared",
            {
                *("data.image_set", "data.imagenet", "data.picture_set"),
                *(
                    "data.picture_options",
                    "data.cifar",
                    "data.imagenet_builder",
                    "data.records",
                    "data.splits",
                ),
                "errors",
            },
        ),
        ("data.fabricated", {"data.image_set"}),
        ("data.read_ahead", {"errors"}),
        (
            "data.picture_set",
            {"data.decode", "data.image_set", "data.read_ahead", "errors"},
        ),
        (
            "data.folder",
            {
                *("data.decode", "data.image_set", "data.picture_options"),
                *("data.picture_set", "data.splits", "errors"),
            },
        ),
        ("data.picture_options", set()),
    ],
)
def test_module_imports_only(module, allowed):
    assert siblings(f"googlenet_flax.{module}") <= allowed


@pytest.mark.parametrize("module", [name for name in TREES if ".data" in name])
def test_data_import_only_data_and_errors(module):
    for name in siblings(module):
        assert name == "errors" or name.split(".")[0] == "data"


@pytest.mark.parametrize("module", [name for name in TREES if ".originals" in name])
def test_originals_import_only_originals_and_the_network(module):
    for name in siblings(module):
        assert name in {"errors", "layers", "model"} or name.split(".")[0] == "originals"


def test_imports_have_no_cycle():
    graph = {module: imports(module) & set(TREES) for module in TREES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_drawer_for_everything():
    names = {path.name for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


# Together they take three times as long to import as all the rest.
SLOW = {"grain", "matplotlib", "orbax", "sklearn", "tensorflow", "tensorflow_datasets"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("googlenet_flax", {"PIL", "ml_collections"}),
        ("googlenet_flax.main", set()),
        ("googlenet_flax.evaluate, googlenet_flax.predict", set()),
    ],
)
def test_import_is_light(modules, absent):
    program = f"import sys, {modules}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "googlenet_flax" in loaded
    assert not loaded & (SLOW | absent | (EXTRAS_ONLY - {"google"}))
