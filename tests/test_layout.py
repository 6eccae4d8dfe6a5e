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


def imports(module: str) -> set[str]:
    """Modules that it imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(TREES[module]):
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


def outsiders(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


each_module = pytest.mark.parametrize("module", TREES)


def test_the_modules_are_found():
    expected = {"", ".main", ".train", ".model", ".data", ".data.cifar"}
    assert {f"googlenet_flax{name}" for name in expected} <= set(TREES)


@each_module
def test_module_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])


@each_module
def test_nobody_imports_main(module):
    assert "main" not in siblings(module)


@each_module
def test_outsiders_that_are_not_for_the_package(module):
    assert not outsiders(module) & {"configs", "tests", "tensorflow", "torch", "keras"}
    assert "ml_collections" not in outsiders(module) or module == "googlenet_flax.main"


def test_only_the_data_know_tensorflow_datasets():
    users = {module for module in TREES if "tensorflow_datasets" in outsiders(module)}
    assert users
    assert all(module.startswith("googlenet_flax.data.") for module in users)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("errors", set()),
        ("ops", set()),
        ("version", set()),
        ("layers", {"ops"}),
        ("model", {"layers", "ops"}),
        ("schedule", {"errors"}),
        ("workdir", {"errors"}),
        ("progress", set()),
        ("metrics_writer", set()),
        ("config", {"errors", "model"}),
    ],
)
def test_module_imports_only(module, allowed):
    assert siblings(f"googlenet_flax.{module}") <= allowed


@pytest.mark.parametrize("module", [name for name in TREES if ".data" in name])
def test_data_import_only_data_and_errors(module):
    for name in siblings(module):
        assert name == "errors" or name.split(".")[0] == "data"


def test_imports_have_no_cycle():
    graph = {module: imports(module) & set(TREES) for module in TREES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_drawer_for_everything():
    names = {path.name for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


def test_import_is_light():
    program = "import sys, googlenet_flax; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "googlenet_flax" in loaded
    heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "orbax", "ml_collections"}
    assert not loaded & heavy
