"""The installed package: the command `googlenet`, the recipes and the types."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from helpers.configs import CONFIG_FILES
from helpers.paths import REPOSITORY
from helpers.processes import finish, start_program, start_python

from googlenet_flax import __main__ as googlenet
from googlenet_flax.version import __version__


def test_help_lists_the_commands(run_command):
    code, out, err = run_command(googlenet, "--help")
    assert (code, err) == (0, "")
    summaries = dict(re.findall(r"^  ([a-z]\S*) {2,}(\S.*)", out, re.MULTILINE))
    assert len(summaries) == len(googlenet.find_commands())
    assert summaries["train"] == "Trains GoogLeNet from a config file."
    assert "import-weights" in summaries


def test_version(run_command):
    assert run_command(googlenet, "--version") == (0, f"googlenet_flax {__version__}\n", "")


@pytest.mark.parametrize("name", ["", "nosuch", "main"])
def test_an_unknown_command_is_refused(run_command, name):
    code, out, err = run_command(googlenet, *name.split())
    assert (code, out) == (2, "")
    assert "COMMAND" in err and "usage: googlenet" in err


@pytest.mark.parametrize("name", ["import-weights", "import_weights"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_command_is_named_as_it_was_called(run_command, name):
    code, out, _ = run_command(googlenet, name, "--help")
    assert code == 0
    assert out.startswith("usage: googlenet import-weights [-h]")


@pytest.mark.parametrize(
    "command", ["googlenet_flax benchmark", "googlenet_flax.train --config=digits"]
)
def test_a_recipe_is_found_from_any_folder(tmp_path, command):
    command = ("-m", *command.split(), "--config.batch_size=0")
    environment = {"PYTHONPATH": str(REPOSITORY)}
    code, out, err = finish(start_python(*command, cwd=tmp_path, env=environment))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert "batch_size is 0" in line


@pytest.mark.ci
def test_a_wheel_needs_no_clone(tmp_path):
    build = ("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    subprocess.run([sys.executable, *build], cwd=REPOSITORY, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"googlenet_flax/configs/{path.name}" for path in CONFIG_FILES}
    assert recipes | {"googlenet_flax/py.typed"} <= names
    metadata = f"googlenet_flax-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"googlenet_flax", metadata}
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    install = "-m pip install -q --no-index --no-deps".split()
    subprocess.run([bin / "python", *install, wheel], check=True)
    # The dependencies are installed already.
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    flags = "train --config=digits --dry_run --config.width_multiplier=0.1".split()
    command = (bin / "googlenet", *flags, "--config.num_epochs=1")
    code, out, err = finish(start_program(*command, cwd=tmp_path, env={"PYTHONPATH": ""}))
    # A busy machine says how long it compiles.
    said = [line for line in err.splitlines() if ": compiling " not in line]
    assert (code, said) == (0, [])
    assert "digits, 1,437 images to train on" in out and "44 of 32 images" in out
