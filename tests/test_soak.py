"""Checks that memory, threads and files of a long run do not grow."""

import re
import statistics

import psutil
import pytest
from helpers.compilations import TELL_COMPILATIONS, compilations_by_step
from helpers.processes import finish_well
from helpers.tiny_run import EPOCH_STEPS, start_tiny

STEPS = 2000
LOG_EVERY_STEPS = 10
EPOCHS_BETWEEN_EVALUATIONS = 20
FIRST_EVALUATION = EPOCHS_BETWEEN_EVALUATIONS * EPOCH_STEPS
CHECKPOINT_EVERY_STEPS = 50
SETTLED_STEP = 500  # The window begins after five evaluations and ten checkpoints.
WINDOW = 500
# Pools start their threads when there is work for them, which is late on a busy machine. If
# each evaluation and each checkpoint between the windows left a thread behind, there would
# be fifteen more.
LAZY_THREADS = 8
MAX_GROWTH = 0.02  # A state kept at each step would be twenty times that.


@pytest.mark.faults
def test_nothing_grows_in_2000_steps(tmp_path):
    more = [
        f"--config.max_steps={STEPS}",
        f"--config.num_epochs={STEPS}",
        f"--config.log_every_steps={LOG_EVERY_STEPS}",
        f"--config.eval_every_epochs={EPOCHS_BETWEEN_EVALUATIONS}",
        f"--config.checkpoint_every_steps={CHECKPOINT_EVERY_STEPS}",
    ]
    process = start_tiny(tmp_path / "run", *more, before=TELL_COMPILATIONS)
    watched = psutil.Process(process.pid)
    lines, samples = "", {}
    step = 0
    for line in process.stderr:
        lines += line
        if match := re.match(rf"step (\d+)/{STEPS} ", line):
            step = int(match[1])
            with watched.oneshot():
                memory = watched.memory_info().rss
                samples[step] = memory, watched.num_threads(), watched.num_fds()
    out, _ = finish_well(process)
    assert "Done." in out and step == STEPS
    compiled = compilations_by_step(lines)
    assert compiled.pop(0).count("jit(_fun)") == 1  # Besides what a start needs.
    assert compiled == {FIRST_EVALUATION: ["jit(_fun)"]}
    assert_flat(samples)


def assert_flat(samples):
    """Compares the last steps with as many after the start."""
    early = [values for step, values in samples.items() if step <= SETTLED_STEP + WINDOW]
    late = [values for step, values in samples.items() if step > STEPS - WINDOW]
    memory, threads, files = zip(*early[SETTLED_STEP // LOG_EVERY_STEPS :], strict=True)
    late_memory, late_threads, late_files = zip(*late, strict=True)
    assert max(late_memory) <= max(memory) * (1 + MAX_GROWTH), (memory, late_memory)
    assert max(late_threads) <= max(threads) + LAZY_THREADS, (threads, late_threads)
    # A save that is under way has some open; one left behind would be in every sample.
    assert statistics.median(late_files) <= statistics.median(files), (files, late_files)
    assert min(late_files) <= min(files), (files, late_files)
