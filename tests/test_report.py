import io
import json
import re
import shutil
import subprocess
import types
import xml.etree.ElementTree as ET
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
from helpers.images import random_images
from helpers.networks import create_small, numpy_variables, preprocess
from helpers.untrained_runs import describe, write_run
from scipy.special import softmax

from googlenet_flax import create_model
from googlenet_flax import report as command
from googlenet_flax.analysis.endpoints import activation_and_gradient
from googlenet_flax.config import Config
from googlenet_flax.data import load_split
from googlenet_flax.reports import answer_figures, curves
from googlenet_flax.reports.answers import most_confused, reliability_bins, score_classes
from googlenet_flax.reports.comparison_page import create_comparison_page
from googlenet_flax.reports.gather import gather
from googlenet_flax.reports.look_inside import (
    filter_pictures,
    grad_cam,
    look_inside,
    strongest_channels,
)
from googlenet_flax.reports.page import Page, number, percent
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import Material, create_run_page
from googlenet_flax.runs.checkpoint import Checkpoints, DamagedCheckpointError
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError

TESTED = 60  # Number of digits.
CLASSIFIERS = ("main", "aux_4a", "aux_4d")
DESCRIPTION = describe(
    variant="seed",
    class_names=tuple("0123456789"),
    storage_size=8,
    input_scale=1 / 16,
    untrained_heads=("aux_4a",),
)
CONFIG = {
    **{"dataset": "digits", "data_dir": "", "train_split": "train", "eval_split": "test"},
    **{"image_size": 80, "variant": "seed", "batch_size": 32, "num_epochs": 3},
    **{"averaging": "none", "seed": 7},
}
START = {"time": 1.6e9, "step": 0, "epoch_steps": 5, "total_steps": 15}
START["environment"] = {"jax": "0.0.1", "devices": "8 x TPU"}


def training_row(step):
    losses = {name: 3 / step for name in ("main_loss", "aux_4a_loss", "aux_4d_loss")}
    accuracies = {name: 0.5 for name in ("accuracy", "aux_4a_accuracy", "aux_4d_accuracy")}
    rates = {"learning_rate": 0.1 / step, "images_per_second": 100.0 + step}
    place = {"step": step, "epoch": step // 5, "split": "train"}
    return {**place, **losses, **accuracies, **rates}


def evaluation_row(step, accuracy):
    return {
        **{"step": step, "epoch": step // 5, "split": "eval", "loss": 2 - accuracy},
        **{"accuracy": accuracy, "top5": 0.9, "main_loss": 1 - accuracy},
        **{"aux_4a_accuracy": 0.3125, "aux_4d_accuracy": 0.4375, "eval_seconds": 1.5},
    }


# Two epochs of five steps, and the beginning of a third.
ROWS = [
    *map(training_row, range(1, 6)),
    evaluation_row(5, 0.625),
    *map(training_row, range(6, 11)),
    evaluation_row(10, 0.5625),
    training_row(11),
]


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def bare_run(workdir, rows=ROWS, starts=(START,), **config):
    """Writes a run without a checkpoint."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_lines(workdir / "metrics.jsonl", rows)
    write_lines(workdir / "starts.jsonl", starts)
    (workdir / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return workdir


@pytest.fixture(scope="module")
def digits():
    split = load_split("digits", "test", data_dir="")
    chosen = np.arange(TESTED) * len(split) // TESTED
    return split.images[chosen], split.labels[chosen], chosen


@pytest.fixture(scope="module")
def small_model(small_networks):
    """Returns the network of every description here, three narrow blocks."""
    return create_small(DESCRIPTION)


@pytest.fixture(scope="module")
def compute(small_model, digits):
    """Computes the logits of all digits, and the maps and gradients of a head."""
    inputs = DESCRIPTION.preprocess(jnp.asarray(digits[0]))

    @jax.jit
    def forward(variables):
        output = small_model.apply(variables, inputs, train=False)
        head = activation_and_gradient(
            small_model, variables, inputs, "inception_4a", lambda out: out.aux_4a.max(-1)
        )
        return {
            "main": output.logits,
            "aux_4a": output.aux_4a,
            "aux_4d": output.aux_4d,
        }, head

    return forward


@pytest.fixture(scope="module")
def variables(small_model, compute):
    """Returns weights whose answers are right and wrong with various confidences."""
    variables = numpy_variables(small_model)
    logits = np.asarray(compute(variables)[0]["main"])
    scale = 2 / logits.std(axis=0)
    layer = variables["params"]["classifier"]
    layer["kernel"] = layer["kernel"] * scale
    layer["bias"] = (layer["bias"] - logits.mean(axis=0)) * scale
    return variables


@pytest.fixture(scope="module")
def probabilities(compute, variables):
    """Computes the probabilities of every classifier with the network alone."""
    logits, _ = compute(variables)
    return {name: softmax(np.float64(each), axis=1) for name, each in logits.items()}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("runs") / "a run"
    write_run(path, DESCRIPTION, variables, **CONFIG)
    return bare_run(path)


@pytest.fixture(scope="module")
def made(workdir):
    """Returns the parsed page, its file and its material."""
    material = gather(Workdir(workdir), max_examples=TESTED)
    page, file = create_run_page(material), workdir / "report" / "index.html"
    file.parent.mkdir()
    page.write(file)
    return read(page), file, material


def read(page):
    """Reads a page with a strict XML parser; returns its tables by their captions."""
    text = page if isinstance(page, str) else page.to_html()
    tree = ET.fromstring(re.sub(r"<((?:meta|img)\b[^>]*)>", r"<\1/>", text))
    tables = {
        region.get("aria-label"): [
            ["".join(cell.itertext()) for cell in row] for row in region.iter("tr")
        ]
        for region in tree.iterfind(".//*[@role='region']")
    }
    return types.SimpleNamespace(
        tables=tables,
        text="".join(tree.find("body").itertext()),
        elements=list(tree.iter()),
        images=[element.attrib for element in tree.iter("img")],
    )


def table_of(reader, beginning):
    (name,) = [name for name in reader.tables if name.startswith(beginning)]
    return reader.tables[name][1:]


def record_of(path):
    return RunRecord.read(Workdir(path))


def page_of(path):
    """Reads the page of a run without a checkpoint; its figures are empty."""
    names = "classifier_figure", "rate_figure"
    with mock.patch.multiple(curves, **{name: lambda *_, **__: b"" for name in names}):
        return read(create_run_page(Material(record_of(path))))


# Tests of the page of a run.


def test_scores_are_those_of_scikit_learn(made, digits, probabilities):
    labels = digits[1]
    rows = {row[0]: row[1:] for row in table_of(made[0], "Scores on 60 examples")}
    assert tuple(rows) == CLASSIFIERS
    for name, each in probabilities.items():
        right = sklearn.metrics.accuracy_score(labels, each.argmax(1))
        among_5 = sklearn.metrics.top_k_accuracy_score(labels, each, k=5)
        assert 0 < right < 1 or name != "main"
        assert rows[name][:2] == [f"{right:.2%}", f"{among_5:.2%}"]
        loss = -np.log(each[np.arange(TESTED), labels]).mean()
        assert float(rows[name][2]) == pytest.approx(loss, abs=1e-3)
        sure = 100 * each.max(1).mean()
        assert float(rows[name][3].rstrip("%")) == pytest.approx(sure, abs=0.02)


def test_classes_are_those_of_scikit_learn(made, digits, probabilities):
    predicted = probabilities["main"].argmax(1)
    assert len(set(predicted)) > 3
    report = sklearn.metrics.classification_report(
        digits[1], predicted, output_dict=True, zero_division=np.nan
    )
    for name, _, *cells in table_of(made[0], "Precision, recall and F1"):
        *scores, support = report[name].values()
        shown = ["-" if np.isnan(v) else f"{v:.2%}" for v in scores]
        assert cells == [*shown, str(int(support))]


def test_mistakes_are_the_surest_ones(made, digits, probabilities):
    images, labels, chosen = digits
    reader, _, material = made
    each = enumerate(probabilities["main"])
    wrong = [(-p.max(), i) for i, p in each if p.argmax() != labels[i]]
    surest = [i for _, i in sorted(wrong)[:12]]
    names = [row[-1] for row in table_of(reader, "Pictures of the most confident")]
    assert names == [f"example {i}" for i in chosen[surest]]
    # The pictures are those that the network sees.
    shown = DESCRIPTION.preprocess.cut(jnp.asarray(images[surest]), None)
    np.testing.assert_allclose(material.tested.pictures, shown, atol=0.5)


def test_training_is_that_of_the_rows(made):
    reader, _, _ = made
    first, second = table_of(reader, "Evaluations")
    assert first[:5] == ["5", "1", "1.3750", "62.50%", "90.00%"]
    assert first[5:] == ["31.25%", "43.75%", "1.5"] and second[0] == "10"
    assert "11 of 15 steps done (73%)" in reader.text
    assert "Best accuracy: 62.50%, after step 5." in reader.text
    assert "untrained heads, whose outputs mean nothing: aux_4a." in reader.text
    assert any("median 106.0" in image["alt"] for image in reader.images)


def test_settings(made, workdir):
    reader, _, _ = made
    fields = Config.of(CONFIG).to_dict()
    config = dict(table_of(reader, "Config of the run"))
    assert config == {name: repr(value) for name, value in fields.items()}
    assert dict(table_of(reader, "Report made with"))["jax"] == jax.__version__
    assert table_of(reader, "Starts of the run") == [
        ["2020-09-13 12:26:40 UTC", "0", "jax 0.0.1, devices 8 x TPU"]
    ]
    facts = dict(table_of(reader, "Facts"))
    assert facts["workdir"] == str(workdir)
    assert facts["checkpoint"] == "0 (weights as trained)"


def test_the_picture_is_the_first_one(made, probabilities):
    best = np.argmax(probabilities["main"][0])
    row = table_of(made[0], "Predictions for the picture")[0]
    assert row == ["main", str(best), f"{probabilities['main'][0, best]:.2%}"]


def test_grad_cam_of_a_network_is_the_classifiers_kernel(
    made, compute, variables, probabilities
):
    view = made[2].view
    head, _, last = view.evidence
    assert (last.classifier, last.block) == ("main", "inception_5a")
    assert last.predicted == np.argmax(probabilities["main"][0])
    # Behind the last block are a mean and one layer, so its weights are that layer's.
    kernel = variables["params"]["classifier"]["kernel"]
    maps = np.float64(view.maps["inception_5a"])
    heat = np.maximum(maps @ kernel[:, last.predicted], 0)
    np.testing.assert_allclose(last.heat, heat / heat.max(), atol=1e-4)
    # The evidence of a head is for the class that the head predicts.
    assert (head.classifier, head.block) == ("aux_4a", "inception_4a")
    assert head.predicted == np.argmax(probabilities["aux_4a"][0])
    maps, gradient = (values[0] for values in compute(variables)[1])
    np.testing.assert_allclose(head.heat, grad_cam(maps, gradient), atol=1e-3)


@pytest.mark.slow
def test_blocks_and_evidence_of_the_whole_network():
    model = create_model("seed", num_classes=10, width_multiplier=0.1)
    batch = {"image": random_images(1, 80, 80, 3)}
    view = look_inside(model, preprocess(), numpy_variables(model), "noise", batch)
    blocks = [f"inception_{name}" for name in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split()]
    assert list(view.maps) == blocks
    places = [(e.classifier, e.block.removeprefix("inception_")) for e in view.evidence]
    assert places == [("aux_4a", "4a"), ("aux_4d", "4d"), ("main", "4e"), ("main", "5b")]


def test_page_stands_alone(made):
    reader, file, _ = made
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    tags = {element.tag for element in reader.elements}
    assert not tags & {"script", "link", "iframe", "object"}
    ids = [element.get("id") for element in reader.elements if element.get("id")]
    links = {element.get("href")[1:] for element in reader.elements if element.tag == "a"}
    assert len(set(ids)) == len(ids) and links <= set(ids)
    assert len(reader.images) == 11
    for image in reader.images:
        assert image["src"].startswith("data:image/png;base64,")
        assert len(image["alt"]) > 20 and image["width"] == "600"


def test_pngs_show_something(made):
    _, file, _ = made
    names = {path.name for path in file.parent.iterdir()} - {file.name}
    assert names == {
        *("loss.png", "accuracy.png", "learning_rate.png", "throughput.png"),
        *("confusion.png", "classes.png", "calibration.png", "mistakes.png"),
        *("filters.png", "grad_cam.png", "activations.png"),
    }
    for name in names:
        with PIL.Image.open(file.with_name(name)) as image:
            assert image.format == "PNG" and image.width == 900
            gray = np.asarray(image.convert("L"))
        assert np.mean(gray != 255) > 0.005 and len(np.unique(gray)) > 20


# Tests of missing parts.


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_without_a_checkpoint_that_goes_on(tmp_path, run_command, rows):
    path = bare_run(tmp_path / "run", ROWS[:rows])
    with Workdir(path):  # A training process holds this lock.
        before = (path / ".lock").read_text()
        code, out, err = run_command(command, f"--workdir={path}")
        assert (path / ".lock").read_text() == before
    file = path / "report" / "index.html"
    assert (code, out) == (0, f"{file}\n")
    assert err.count("\n") == (1 if rows else 2) and "train first" in err
    reader = read(file.read_text())
    assert "Predictions and weights are not shown: no checkpoint in" in reader.text
    assert len(reader.images) == (4 if rows else 0)
    assert "Inside the network" not in reader.text
    assert "Evaluations" not in reader.tables
    said = "There are no curves: the run has no metrics yet." in reader.text
    assert said == (rows == 0)
    assert f"{rows} of 15 steps done" in reader.text


def test_the_data_are_gone_and_a_checkpoint_vanishes(tmp_path, variables, monkeypatch):
    config = {**CONFIG, "dataset": "cifar10", "data_dir": str(tmp_path)}
    path = write_run(tmp_path / "run", DESCRIPTION, variables, **config)
    gone = DamagedCheckpointError(path / "checkpoints" / "5", "gone")
    restore = mock.Mock(
        wraps=Checkpoints(path / "checkpoints").restore_variables,
        side_effect=[gone, gone, mock.DEFAULT],
    )
    monkeypatch.setattr(Checkpoints, "restore_variables", restore)
    material = gather(Workdir(path))
    assert material.tested is None and material.view is None
    text = read(create_run_page(material)).text
    assert "for a data set are not shown: data set 'cifar10' is not prepared" in text
    assert "name a picture with --image=FILE" in text
    assert "filters of conv1" in text
    assert not list(tmp_path.glob("cifar*"))
    restore.side_effect = [gone, gone, gone]
    material = gather(Workdir(path))
    assert material.predictor is None and "is damaged: gone" in material.missing[1]


def test_imported_weights_and_a_picture(tmp_path, variables, monkeypatch):
    origin = {"format": "keras", "file": "my.weights.h5"}
    path = write_run(tmp_path / "run", DESCRIPTION, variables, imported_from=origin)
    PIL.Image.fromarray(random_images(6, 8, 3)).save(tmp_path / "my.png")
    seen = "googlenet_flax.reports.gather.look_inside"
    monkeypatch.setattr(seen, lambda *args: args[-1])
    batch = gather(Workdir(path), image=str(tmp_path / "my.png")).view
    np.testing.assert_array_equal(batch["extent"], [(6, 8)])
    np.testing.assert_array_equal(batch["image"][0, :6, :8], random_images(6, 8, 3))
    reader = read(create_run_page(gather(Workdir(path), checkpoint="latest")))
    assert "Imported weights; they were not trained here." in reader.text
    assert "these weights were imported" in reader.text
    assert "--dataset" in reader.text
    assert dict(table_of(reader, "Imported from")) == origin


# Tests of errors that the user can fix.


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workdir={other}"], "no run in"),
        (["--workdir=,"], "name a run with --workdir"),
        (["--workdir={run}", "--checkpoint=7"], "no checkpoint '7'"),
        (["--workdir={run}", "--max_examples=-1"], "must be 0 or more"),
        (["--workdir={run}", "--image={run}/none.png"], "none.png cannot be read: no such"),
        (["--workdir={run}", "--out={run}/config.json/page.html"], "cannot be written"),
        (["--workdir={run}", "--out={run}/accuracy.png"], "must end in .html"),
        (["--workdir={run},{second}", "--image=a.png"], "--image is for the report of one"),
        (["--workdir={run},{second}", "--max_examples=5"], "--max_examples is for"),
    ],
)
def test_mistakes_of_the_user(args, words, tmp_path, workdir, refused):
    second = bare_run(tmp_path / "second")
    names = {"run": workdir, "second": second, "other": tmp_path / "none"}
    assert words in refused(command, *(arg.format(**names) for arg in args))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("in_the_way", "words"),
    [
        ("report", "/report cannot be written (File exists): "),
        ("report/index.html/", "/report/index.html is not a file: "),
    ],
)
def test_something_in_the_way(in_the_way, words, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(command, "gather", None)  # The error comes before the work.
    run = bare_run(tmp_path / "run")
    obstacle = run / in_the_way
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.mkdir() if in_the_way.endswith("/") else obstacle.touch()
    before = set(tmp_path.rglob("*"))
    line = refused(command, f"--workdir={run}")
    assert words in line and line.endswith("with --out=FILE")
    assert set(tmp_path.rglob("*")) == before


def test_a_directory_in_the_place_of_a_figure(tmp_path):
    (tmp_path / "curves.png").mkdir()
    page = Page("A page")
    page.pictures["curves.png"] = b"png"
    with pytest.raises(UserError, match=r"/curves\.png cannot be written \(Is a directory"):
        page.write(tmp_path / "index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


# Tests of the numbers.


def test_calibration_by_hand():
    # Five bins of 0.2: (0.4, 0.6] holds 0.55 and 0.6, (0.6, 0.8] nothing, (0.8, 1] two.
    answers = types.SimpleNamespace(
        confidence=np.array([0.95, 0.85, 0.6, 0.55, 0.1]),
        correct=np.array([True, False, True, True, False]),
    )
    result = reliability_bins(answers, bins=5)
    np.testing.assert_array_equal(result.sizes, [1, 0, 2, 0, 2])
    np.testing.assert_allclose(result.confidence, [0.1, np.nan, 0.575, np.nan, 0.9])
    np.testing.assert_allclose(result.accuracy, [0, np.nan, 1, np.nan, 0.5])
    assert result.error == pytest.approx((0.1 + 2 * 0.425 + 2 * 0.4) / 5)
    answers.confidence, answers.correct = np.array([1, 1.0000001]), np.array([True, True])
    assert reliability_bins(answers).sizes[14] == 2


def test_confusions_by_hand():
    confusions = np.array([[1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert most_confused(confusions, 9) == [(0, 1, 2), (1, 0, 1), (3, 0, 1)]
    assert most_confused(confusions, 1) == [(0, 1, 2)]
    labels, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 0])
    scores = score_classes(labels, predicted, 4)
    np.testing.assert_array_equal(answer_figures.worst_classes(scores), [0, 1, 3])


def test_grad_cam_by_hand():
    maps = np.array([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [4.0, 4.0]]])
    gradient = np.array([[[1.0, -1.0], [3.0, -1.0]], [[2.0, -3.0], [2.0, -3.0]]])
    # Weights 2 and -2: 2 * (map 0 - map 1) = -2, -2, 6, 0.
    np.testing.assert_allclose(grad_cam(maps, gradient), [[0, 0], [1, 0]])
    assert not grad_cam(-maps[..., :1], gradient[..., :1]).any()


def test_channels_and_filters():
    maps = np.stack([np.full((2, 2), level) for level in (1.0, 5.0, 3.0)], axis=2)
    np.testing.assert_array_equal(strongest_channels(maps, 2), [1, 2])
    kernel = np.zeros((1, 1, 3, 2))
    kernel[0, 0, :, 1] = 2.0, -1.0, 0.0
    np.testing.assert_allclose(
        filter_pictures(kernel, "RGB")[:, 0, 0], [[0.5] * 3, [1, 0.25, 0.5]]
    )
    np.testing.assert_allclose(filter_pictures(kernel, "BGR")[1, 0, 0], [0.5, 0.25, 1])


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2])]
)
def test_filters_of_other_channels_are_shown_in_gray_or_color(channels, shown):
    kernel = np.random.default_rng(0).normal(size=(2, 3, channels, 5))
    pictures = filter_pictures(kernel, "RGB")
    assert pictures.shape == (5, 2, 3, 3)
    np.testing.assert_array_equal(pictures, filter_pictures(kernel[:, :, shown], "RGB"))


# Tests of the record of a run.


def test_a_run_whose_starts_cannot_be_read(tmp_path):
    path = bare_run(tmp_path / "run")
    (path / "starts.jsonl").unlink()
    reader = page_of(path)
    assert "11 steps done" in reader.text and "Starts of the run" not in reader.tables


def test_the_best_is_the_latest_of_equals_and_by_averages(tmp_path):
    rows = [evaluation_row(step, 1 - step / 50) for step in (5, 10, 15)]
    for row, averaged in zip(rows, (0.5, 0.6, 0.6), strict=True):
        row["averaged_accuracy"] = averaged
    text = page_of(bare_run(tmp_path / "run", rows)).text
    assert "Best averaged weights' accuracy: 60.00%, after step 15." in text


@pytest.mark.parametrize(
    ("start_times", "row_times", "words"),
    [
        ([1000.0], [1010.0, 1030.0, 8384.4], "2 h 03 min in 1 start,"),
        ([1000.0, 2000.0, 3000.0], [1010.0, 1030.0, 3060.0], "1 min 30 s in 3 starts,"),
        ([1000.0], [], "0 s in 1 start,"),
        ([], [1010.0], "starts.jsonl or the rows' unix_seconds are missing"),
        ([1000.0], [None], "starts.jsonl or the rows' unix_seconds are missing"),
    ],
)
def test_time_is_that_from_each_start_to_its_last_row(
    tmp_path, start_times, row_times, words
):
    rows = [{**row, "unix_seconds": t} for row, t in zip(ROWS, row_times, strict=False)]
    rows = ROWS if row_times == [None] else rows
    starts = [{**START, "time": time} for time in start_times]
    assert words in page_of(bare_run(tmp_path / "run", rows, starts)).text


# Tests of the figures.


def test_figures_are_the_same_under_other_settings_and_leave_them_alone(tmp_path):
    record = record_of(bare_run(tmp_path / "run"))
    flags = record, "images_per_second", "images/s"
    before = curves.rate_figure(*flags)
    with mpl.rc_context({"font.size": 40, "figure.facecolor": "red"}):
        assert curves.rate_figure(*flags) == before
        assert mpl.rcParams["font.size"] == 40


def test_the_legend_names_every_run(tmp_path):
    names = ["first", "_second"]
    records = [record_of(bare_run(tmp_path / name)) for name in names]
    draw = curves.comparison_figure.__wrapped__
    (ax,) = draw(records, names, "accuracy", "accuracy (%)").axes
    assert [text.get_text().strip() for text in ax.get_legend().get_texts()] == names


@pytest.mark.parametrize("classes", [2, 30, 120])
def test_names_of_any_kind_and_number(classes, recwarn):
    names = [f"$x_{i} <b>猫 \udcff {'long ' * (i % 9)}" for i in range(classes)]
    labels = np.arange(5 * classes) % classes
    confusions = np.roll(5 * np.eye(classes, dtype=int), 1, axis=1)
    png = answer_figures.confusion_figure(confusions, names)
    scores = score_classes(labels, (labels * 3) % classes, classes)
    for data in (png, answer_figures.per_class_figure(scores, names)):
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert image.width == 900 and image.height < 1300
    assert not recwarn.list


def test_text_of_a_page_is_escaped():
    page = Page("<script>alert(1)</script> \udcff & $body")
    page.section('a "quoted" <i>title</i>')
    page.table(["<th>", "n"], [["<td>", number(1234567)], ["x", None]], caption='"><b>')
    page.missing("1 < 2")
    reader = read(page)
    assert not {element.tag for element in reader.elements} & {"script", "i", "b"}
    assert "<script>alert(1)</script> \\udcff & $body" in reader.text
    assert reader.tables['"><b>'] == [["<th>", "n"], ["<td>", "1,234,567"], ["x", "-"]]
    assert percent(float("nan")) is None


# Tests of several runs.


def test_comparison(tmp_path, run_command):
    first = bare_run(tmp_path / "first")
    better = [evaluation_row(5, 0.75), evaluation_row(10, 0.6875)]
    second = bare_run(tmp_path / "second", rows=better, seed=8, flip="random")
    code, out, err = run_command(command, f"--workdir={first},{second},{first}/")
    file = first / "report" / "comparison.html"
    assert (code, out, err) == (0, f"{file}\n", "")
    reader = read(file.read_text())
    assert "2 runs compared" in reader.text
    first_row = ["first", "11 of 15", "62.50%", "5", "56.25%", "0.4375", "106.0", "-"]
    second_row = ["second", "10 of 15", "75.00%", "5", "68.75%", "0.3125", "-", "-"]
    assert table_of(reader, "Evaluations of the main") == [first_row, second_row]
    differences = table_of(reader, "Where the configs differ")
    assert differences == [["flip", "'none'", "'random'"], ["seed", "7", "8"]]
    names = ("comparison.html", "comparison_accuracy.png", "comparison_main_loss.png")
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(names)


def test_a_workdir_with_a_comma_in_its_name(tmp_path, run_command):
    run = bare_run(tmp_path / "rate=0.1,decay=0", rows=[])
    assert run_command(command, f"--workdir={run}")[0] == 0


def test_comparison_to_another_place_of_runs_of_one_name(tmp_path, run_command):
    paths = [bare_run(tmp_path / name / "run") for name in "ab"]
    file = tmp_path / "new" / "page.html"
    code, *_ = run_command(command, f"--workdir={paths[0]},{paths[1]}", f"--out={file}")
    assert code == 0 and not (paths[0] / "report").exists()
    reader = read(file.read_text())
    table = table_of(reader, "Evaluations of the main")
    assert [row[0] for row in table] == [str(path) for path in paths]
    assert "The runs have the same config." in reader.text
    # The names of the figures begin with that of the page, so they replace no others.
    names = ("page.html", "page_comparison_accuracy.png", "page_comparison_main_loss.png")
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(names)


def test_comparison_of_runs_that_were_not_evaluated(tmp_path):
    records = [record_of(bare_run(tmp_path / name, rows=[])) for name in "ab"]
    reader = read(create_comparison_page(records))
    assert "No run has been evaluated yet" in reader.text and not reader.images


# Tests in a browser.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The page reports its width, and where its pictures end.
MEASURE = """<script>
const ends = [...document.images].map(image => image.getBoundingClientRect().right);
const page = document.documentElement;
parent.postMessage([innerWidth, page.scrollWidth, ...ends.map(Math.round)].join(" "), "*");
</script></body>"""
# Chromium makes no window narrower than 500 px.
FRAME = """<body><iframe src="page.html" style="border: 0; width: {}px"></iframe>
<script>onmessage = event => {{ document.body.dataset.sizes = event.data }};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_is_wider_than_the_screen(made, tmp_path, width):
    text = made[1].read_text(encoding="utf-8")
    text = re.sub("<meta http-equiv.*?>", "", text, flags=re.DOTALL)
    (tmp_path / "page.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    arguments = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"),
        *("--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/frame.html"),
    ]
    result = subprocess.run(
        [CHROMIUM, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    sizes = re.search('data-sizes="([^"]*)"', result.stdout)
    inner, page, *ends = map(int, sizes[1].split())
    assert inner == width
    assert page <= width
    assert len(ends) == 11 and 300 < max(ends) <= width
