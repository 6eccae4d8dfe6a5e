import re

import jax
import pytest
from helpers.networks import shapes_of
from helpers.paths import REPOSITORY

from googlenet_flax import create_model
from googlenet_flax.analysis import table1
from googlenet_flax.analysis.table1 import format_table_1, table_1
from googlenet_flax.model.googlenet import INCEPTIONS


@pytest.fixture(scope="module")
def rows():
    return table_1(create_model("paper", num_classes=1000), 224)


def test_outputs_are_those_that_the_paper_prints(rows):
    outputs = [(row.type.split(" (")[0], "x".join(map(str, row.output))) for row in rows]
    assert outputs == [
        *(("convolution", "112x112x64"), ("max pool", "56x56x64")),
        *(("convolution", "56x56x192"), ("max pool", "28x28x192")),
        *(("inception", "28x28x256"), ("inception", "28x28x480")),
        ("max pool", "14x14x480"),
        *[("inception", "14x14x512")] * 3,
        *(("inception", "14x14x528"), ("inception", "14x14x832")),
        ("max pool", "7x7x832"),
        *(("inception", "7x7x832"), ("inception", "7x7x1024")),
        *(("avg pool", "1x1x1024"), ("dropout", "1x1x1024")),
        *((name, "1x1x1000") for name in ("linear", "softmax", "aux_4a", "aux_4d")),
    ]


def test_sums_and_the_table_of_the_page(rows, monkeypatch):
    monkeypatch.setattr(table1, "table_1", lambda *_: rows)
    # Our operations are counted as usual; the paper's are the sum of its column.
    text = format_table_1(create_model("paper", num_classes=1000), 224)
    total, with_heads = (
        re.sub(r" +", " ", line)
        for line in text.splitlines()
        if line.startswith(("sum", "with heads"))
    )
    assert total == "sum 6,998,552 6,798K 1,582.7M 1,502M"
    assert with_heads == "with heads 13,378,280 1,591.0M"
    assert text.rstrip() in (REPOSITORY / "docs" / "runs.md").read_text()


def test_marks_are_the_papers_misprints(rows):
    # conv1 differs by a factor, the others by some percent, which is more than rounding.
    params = {row.type: row.params / 1024 for row in rows if row.params_differ()}
    assert set(params) == {
        "convolution",
        *(f"inception ({name})" for name in ("4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    }
    ops = {row.type for row in rows if row.ops_differ()}
    assert ops == {"convolution", "inception (5a)"}


def test_any_network_has_a_table():
    """Checks a table without most blocks of the paper, and with one of its own."""
    names = ["3a", "4a", "4d", "5a", "5c"]
    blocks = {f"inception_{name}": INCEPTIONS["inception_3a"] for name in names}
    fields = {"num_classes": 7, "width_multiplier": 0.3, "input_channels": 1}
    model = create_model("torchvision", **fields).clone(inceptions=blocks)
    text = format_table_1(model, 97)
    assert re.findall(r"^inception \((\w+)\)", text, re.MULTILINE) == names
    _, variables = shapes_of(model, 1, 97, 97, 1)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    last = re.search("^with heads +([0-9,]+)", text, re.MULTILINE)
    assert last[1] == f"{total:,}"
    own = "97 px, 7 classes, input depth 1, widths times 0.3, 3x3 in place of 5x5"
    assert f"This network has {own}; the paper's has 224 px and 1000 classes." in text
    lines = re.findall("^(?:conv|incep|linear).*", text, re.MULTILINE)
    assert len(lines) == 8 and len({line.index("M") for line in lines}) == 1
