import pytest
from helpers.compilations import told_of_compilations
from helpers.configs import named_config

from googlenet_flax.runs.metrics import MetricsWriter
from googlenet_flax.train import train_and_evaluate


@pytest.fixture
def happened(monkeypatch):
    """What is compiled and which rows are written, in order."""
    happened = []
    write = MetricsWriter.write

    def note(self, metrics, *, step, epoch, split):
        happened.append(f"{split} {step}")
        write(self, metrics, step=step, epoch=epoch, split=split)

    monkeypatch.setattr(MetricsWriter, "write", note)
    with told_of_compilations(lambda name: happened.append(f"compiled {name}")):
        yield happened


def test_a_run_compiles_its_steps_once(tmp_path, small_inceptions, happened):
    config = {
        **named_config("digits"),
        **{"width_multiplier": 0.1, "train_split": "train[:24]", "batch_size": 8},
        **{"eval_split": "test[:12]", "num_epochs": 2, "log_every_steps": 1},
        **{"checkpoint_every_steps": 1, "decay_rate": 0.7},  # A stair each epoch.
        "image_size": 32,
    }
    train_and_evaluate(config, tmp_path)
    # The first step, also where it was compiled ahead in another thread, and what its
    # log needs; the first evaluation; and then nothing more.
    first, *rest = " / ".join(happened).split("train 1 / ")
    assert first.count("compiled jit(create_state)") == 1
    assert first.count("compiled jit(_fun)") == 1
    later_rows = ["train 2", "train 3", "compiled jit(_fun)", "eval 3"]
    later_rows += [*(f"train {step}" for step in (4, 5, 6)), "eval 6"]
    # The first save slices the leaves of the state, each shape once.
    saving, later = rest[0].split("train 2", 1)
    assert set(saving.split(" / ")) <= {"compiled jit(slice)", ""}
    assert [f"train 2{later}"] == [" / ".join(later_rows)]
