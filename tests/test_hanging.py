"""Pictures whose reading never ends, as on a lost network file system."""

import os
import signal
import sys
import threading
import time

import pytest
from helpers.networks import numpy_variables
from helpers.paths import REPOSITORY
from helpers.pictures import write_pictures
from helpers.processes import finish, finish_well, last_line, start, start_python
from helpers.tiny_run import BATCH_SIZE, SEED, picture_of_batch, saved_steps, start_tiny
from helpers.untrained_runs import describe, write_run

from googlenet_flax.runtime import signals
from googlenet_flax.runtime.signals import StopRequested, stop_on_signal

CLASS_NAMES = ("ant", "bee")
PICTURES = {"train": 12, "test": 4}  # Number of pictures of each class.
STORED = 16  # In pixels.
MAX_STOP_SECONDS = 15

# The code is in a file because the processes that decode import it too.
PROGRAM = """
import importlib, os, sys, threading
from googlenet_flax.data import decode

def read(picture, *args, read=decode._read):
    if str(picture).endswith(os.environ["HANGING"]):
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()
    return read(picture, *args)

decode._read = read
if __name__ == "__main__":
    importlib.import_module(f"googlenet_flax.{sys.argv.pop(1)}").main()
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes pictures of two classes, no two alike."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in PICTURES.items():
        write_pictures(root / split, dict.fromkeys(CLASS_NAMES, count))
    return root


@pytest.fixture
def start_hanging(tmp_path):
    """Starts a command for which reading one picture never ends."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start_hanging(command, *args, path):
        env = {"HANGING": str(path), "PYTHONPATH": str(REPOSITORY)}
        return start_python(tmp_path / "program.py", command, *args, env=env)

    return start_hanging


def train_flags(pictures, workdir, workers=0):
    fields = {
        **{"variant": "seed", "width_multiplier": 0.1, "image_size": 80},
        **{"data_dir": pictures, "storage_size": STORED, "batch_size": BATCH_SIZE},
        **{"num_epochs": 2, "log_every_steps": 1, "checkpoint_every_steps": 2},
        **{"decode_workers": workers, "seed": SEED},
    }
    return [
        *("--config=configs/folder.py", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def interrupt(process, after):
    """Sends Ctrl-C when a reader hangs and the lines `after` are out; returns stderr."""
    said = ""
    while not all(text in said for text in ("hanging", *after)):
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(1)  # Then the run can only wait.
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert time.monotonic() - sent < MAX_STOP_SECONDS
    assert code == 128 + signal.SIGINT, said + err
    return err


@pytest.mark.faults
@pytest.mark.parametrize(
    ("position", "step", "workers"), [(0, 0, 0), (2, 2, 0), (1, 1, 1), (None, 3, 0)]
)
def test_training_stops_and_goes_on(
    tmp_path, pictures, start_hanging, position, step, workers
):
    """Stops a run that waits for a batch, or in the evaluation after step 3."""
    path = pictures / "test" / "bee" / "03.png"
    if position is not None:
        path = picture_of_batch(pictures, position, STORED)
    flags = train_flags(pictures, tmp_path / "run", workers)
    process = start_hanging("main", *flags, path=path)
    err = interrupt(process, after=[f"step {step}/"] if step else [])
    where = f"after step {step}; the state is saved" if step else "before the first step"
    assert f"stopped by SIGINT {where}" in last_line(err)
    assert max(saved_steps(tmp_path / "run"), default=0) == step
    out, _ = finish_well(start("main", *flags))
    assert (f"resuming after step {step}" if step else "from scratch") in out


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, pictures):
    """Writes the run of a network that was trained on the pictures."""
    description = describe(class_names=CLASS_NAMES, storage_size=STORED)
    return write_run(
        tmp_path_factory.mktemp("run"),
        description,
        numpy_variables(description.create_model()),
        dataset="folder",
        data_dir=str(pictures),
        eval_split="test",
        batch_size=BATCH_SIZE,
    )


@pytest.mark.faults
@pytest.mark.parametrize("command", ["predict", "evaluate", "report", "features"])
def test_other_commands_end(pictures, workdir, tmp_path, start_hanging, command):
    path, out = pictures / "test" / "bee" / "03.png", tmp_path / "out"
    out.mkdir()
    more = {
        "predict": [pictures / "test"],
        "report": [f"--out={out / 'page.html'}"],
        "features": [f"--out={out / 'new.npz'}"],
    }
    args = (f"--workdir={workdir}", *more.get(command, []))
    process = start_hanging(command, *args, path=path)
    assert last_line(interrupt(process, after=[])) == "googlenet_flax: interrupted"
    assert not list(out.iterdir())


def test_a_call_is_left_some_time_after_the_signal(monkeypatch):
    monkeypatch.setattr(signals, "MAX_WAIT_SECONDS", 0.2)
    is_over = threading.Event()

    def compile_long():
        os.kill(os.getpid(), signal.SIGTERM)
        is_over.wait(30)

    with stop_on_signal() as request:
        request.wait_for_loop = True
        assert request.call(lambda: 7) == 7
        with pytest.raises(StopRequested):
            request.call(compile_long)
    is_over.set()


def test_a_wait_ends_some_time_after_the_signal(monkeypatch):
    """Checks that a batch that is ready in time is still used for a step."""
    monkeypatch.setattr(signals, "MAX_WAIT_SECONDS", 0.2)
    handler = signal.getsignal(signal.SIGALRM)

    def batches():
        yield "before the signal"
        os.kill(os.getpid(), signal.SIGTERM)
        yield "after the signal"
        threading.Event().wait(30)

    with stop_on_signal() as request:
        request.wait_for_loop = True
        coming = request.interruptible(batches())
        assert [next(coming), next(coming)] == ["before the signal", "after the signal"]
        with pytest.raises(StopRequested):
            next(coming)
        assert request.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGALRM) == handler


def test_an_interrupt_in_a_notebook_does_not_end_the_process(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    # A shell starts background jobs with this signal ignored, and it then stays ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for is_training in (False, True):
        with stop_on_signal() as request:
            request.wait_for_loop = is_training
            if is_training:
                os.kill(os.getpid(), signal.SIGINT)
                assert request.is_due()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) == signal.default_int_handler


PREPARING = """
import os, signal, threading
from googlenet_flax import train

def create_experiment(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
    finally:  # As TFDS removes a data set that it has half written.
        print("removed", flush=True)

train.create_experiment = create_experiment
"""


def test_a_signal_while_data_are_prepared_lets_the_work_clean_up(tmp_path):
    code, out, err = finish(start_tiny(tmp_path / "run", before=PREPARING))
    assert (code, out) == (128 + signal.SIGTERM, "removed\n")
    assert err == "googlenet_flax: stopped by SIGTERM before the first step\n"


def test_no_wait_begins_long_after_the_signal(monkeypatch):
    monkeypatch.setattr(signals, "MAX_WAIT_SECONDS", 0.1)
    with stop_on_signal() as request:
        request.wait_for_loop = True
        coming = request.interruptible(iter("ab"))
        assert next(coming) == "a"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # The wait is as long as a slow step.
        with pytest.raises(StopRequested):
            next(coming)
