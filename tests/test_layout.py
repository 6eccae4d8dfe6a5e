import ast
import graphlib
import subprocess
import sys

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


@each_module
def test_module_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])


@each_module
def test_nobody_imports_a_command(module):
    assert not siblings(module) & COMMANDS


@each_module
def test_outsiders_that_are_not_for_the_package(module):
    assert not outsiders(module) & NEVER
    flags = "googlenet_flax.runtime.command_line"
    assert "ml_collections" not in outsiders(module) or module == flags


@each_module
def test_only_foreign_files_need_packages_of_their_own_and_only_when_called(module):
    if not module.startswith(("googlenet_flax.importers.", "googlenet_flax.exporters.")):
        assert not outsiders(module) & EXTRAS_ONLY
    if not module.startswith("googlenet_flax.importers."):
        assert not outsiders(module) & ORIGINALS_ONLY
    assert not outsiders(module, at_load) & EXTRAS_ONLY


def test_imports_in_functions_are_told_from_those_at_load():
    # Otherwise the tests around this one could not fail.
    for name, package in [("caffe", "onnx"), ("keras", "h5py"), ("torchvision", "torch")]:
        module = f"googlenet_flax.importers.{name}"
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
