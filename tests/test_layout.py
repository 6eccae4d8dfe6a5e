"""The folders and files of the package, and the imports allowed between them."""

import ast

from helpers.paths import REPOSITORY
from helpers.processes import finish_well, start_python

from googlenet_flax.__main__ import find_commands

PACKAGE = REPOSITORY / "googlenet_flax"
# Layers of folders and files ("rooms"). A room may import from itself and from all rooms of
# the layers above its own.
LAYERS = [
    {"version"},
    {"runtime"},
    {"model", "preprocessing", "data"},
    {"config"},
    {"training"},
    {"runs"},
    {"analysis", "importers", "exporters"},
    {"performance", "reports"},
    {"train"},
    {"main", "evaluate", "predict", "features", "import_weights", "export", "report"},
]
COMMANDS = LAYERS[-1] | {"benchmark", "dream"}
LAYERS[-1:] = [COMMANDS, {"__main__"}]
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """Returns the folder or file at the top of the package that holds a module."""
    return module.split(".")[1] if "." in module else ""


def module_name(path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree: ast.AST) -> set[str]:
    """Returns the full names of all imports in a tree, also of those in functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_imports_go_one_way():
    for module, tree in TREES.items():
        own = room_of(module)
        for name in imports(tree) if own else ():
            other = room_of(name) if name.startswith("googlenet_flax.") else own
            is_allowed = other == own or LAYER_OF[other] < LAYER_OF[own]
            assert is_allowed, f"{module} imports {name}"


def test_the_top_holds_commands_config_and_the_loop():
    top = {path.stem for path in PACKAGE.glob("*.py")}
    assert top == COMMANDS | {"__init__", "__main__", "config", "train", "version"}
    assert find_commands().keys() == COMMANDS


# Importing these takes three times as long as importing all the others.
SLOW = set("grain matplotlib orbax pooch sklearn tensorflow tensorflow_datasets".split())
# These are installed by extras alone.
OPTIONAL = set("h5py onnx onnxruntime safetensors torch".split())


def test_import_is_light():
    program = """
import sys, googlenet_flax
print(*sys.modules)
import googlenet_flax.main, googlenet_flax.evaluate, googlenet_flax.predict
print(*sys.modules)
"""
    out, _ = finish_well(start_python("-c", program))
    library, commands = (
        {name.split(".")[0] for name in line.split()} for line in out.splitlines()
    )
    assert "googlenet_flax" in library and not library & {"PIL", "ml_collections"}
    assert not commands & (SLOW | OPTIONAL)
