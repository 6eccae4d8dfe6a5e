import math
import re

import pytest
from helpers.configs import NEVER, named_config

from googlenet_flax.analysis import plan
from googlenet_flax.config import MAX_NUMBER, Config
from googlenet_flax.runtime.errors import UserError


def plan_of(**fields) -> dict[str, str]:
    small = {**named_config("digits"), "width_multiplier": 0.1}
    text = plan.describe_run(Config.of({**small, **fields}))
    return dict(re.findall(r"^([a-z ]+): +(.*)$", text, flags=re.MULTILINE))


@pytest.fixture
def uncompiled(monkeypatch, tmp_path, small_inceptions):
    monkeypatch.setattr(plan, "_compiled_step", lambda *_: {"memory": "not asked"})
    monkeypatch.setattr(plan, "format_table_1", lambda *_: "Table 1\n")
    monkeypatch.chdir(tmp_path)


def test_a_plan_is_that_of_the_config(uncompiled, tmp_path):
    text = plan_of(
        train_split="train[:40]",
        batch_size=8,
        num_epochs=4,
        progressive_image_sizes=(80,),
        progressive_image_size_epochs=(1,),
        image_size=96,
        learning_rate=0.5,
        schedule="linear",
        warmup_epochs=0.0,
        final_rate_fraction=0.0,
    )
    assert text["data"].startswith("digits, 40 images to train on (train[:40]), 360 to")
    assert text["steps"].startswith("20 of 8 images, 5 an epoch, 4 epochs, on 4 x ")
    assert text["image size"] == "80 px to step 5, 96 px to the end"
    # The rates at steps 0, 5, 10, 14 and 19 of 20.
    rates = "0.5 at 0%, 0.375 at 25%, 0.25 at 50%, 0.15 at 75%, 0.025 at 100%"
    assert text["learning rate"] == f"{rates} (linear)"
    assert text["evaluations"] == "4, each saves a checkpoint"
    assert not list(tmp_path.iterdir())


def test_the_operations_are_those_of_each_image_size(uncompiled):
    sizes = {"progressive_image_sizes": (32,), "progressive_image_size_epochs": (1,)}
    few = {"train_split": "train[:40]", "batch_size": 8, "image_size": 160}

    def petaflops(text) -> float:
        return float(re.search(r"([\d.e-]+) PFLOP", text["operations"])[1])

    short = plan_of(**few, **sizes, max_steps=5)
    both = petaflops(plan_of(**few, **sizes, max_steps=20))
    one, other = petaflops(plan_of(**few, max_steps=15)), petaflops(short)
    assert both == pytest.approx(one + other, rel=0.01) and other < one / 20
    assert short["image size"] == "32 px to the end"
    assert "to train on an image of 32 px" in short["operations"]


LONGEST = {"max_steps": MAX_NUMBER, "eval_every_epochs": 2, "batch_size": 8}


@pytest.mark.parametrize(
    ("fields", "rates", "evaluations"),
    [
        (NEVER, "0.05 at 0%, 0.05 at 25%, 0.05 at 50%", 1),
        ({**LONGEST, "train_split": "train[:40]"}, "", math.ceil(MAX_NUMBER / 10)),
    ],
    ids=["never", "longest"],
)
def test_a_plan_of_events_at_the_ends(uncompiled, fields, rates, evaluations):
    text = plan_of(**fields)
    assert text["learning rate"].startswith(rates)
    assert text["evaluations"] == f"{evaluations}, each saves a checkpoint"


def test_a_plan_without_the_data_takes_the_known_sizes(uncompiled):
    missing = {"data_dir": "no", "num_epochs": 2, "batch_size": 256}
    text = plan_of(dataset="cifar10", train_split="train[:3000]", **missing)
    assert text["data"].startswith("cifar10, 3,000 images to train on (train[:3000]), 10,")
    assert text["steps"].startswith("22 of 256 images, 11 an epoch, 2 epochs, on 4 x ")
    assert plan_of(dataset="cifar10:3.0.2", **missing)["steps"].startswith("390 of 256")
    text = plan_of(dataset="imagenet2012", eval_split="validation", **missing)
    assert "5,004 an epoch" in text["steps"] and "1000 classes" in text["data"]


def test_a_plan_of_unknown_data_says_what_is_unknown(uncompiled):
    text = plan_of(dataset="folder", data_dir="no")
    assert text["data"].startswith("unknown, and 1,000 classes assumed: ")
    assert "is not a folder" in text["data"] and "image size" not in text
    for name in ("steps", "learning rate", "evaluations"):
        assert text[name] == "unknown without the data"


@pytest.mark.slow
def test_the_memory_is_that_of_the_compiled_step():
    text = plan_of(train_split="train[:40]", batch_size=8)
    # 108,614 parameters have weights and momentum of 4 bytes each; the rest is small.
    needed, inputs = re.match(
        r"([\d.e-]+) GiB of each device for a step, (\d+) MiB", text["memory"]
    ).groups()
    assert 0.83 <= float(inputs) <= 2 and float(inputs) / 1024 < float(needed) < 0.5


def test_an_unknown_split_is_found():
    with pytest.raises(UserError, match="unknown split 'nothing'"):
        plan_of(train_split="nothing")
