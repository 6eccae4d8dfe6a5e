import dataclasses
import functools
import importlib
import itertools
import json
import sys
import time

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from helpers.networks import small_googlenet
from helpers.paths import REPOSITORY
from originals.weights import ORIGINALS, draw_images, draw_weights, to_flax
from test_parity import TOLERANCE, relative_differences, stored_outputs

from googlenet_flax.model import googlenet as our_model
from googlenet_flax.model.convolution import FASTEST, STOCK
from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet
from googlenet_flax.training.losses import example_metrics
from googlenet_flax.training.optimizer import create_optimizer

sys.path.append(str(REPOSITORY / "benchmarks"))
import compare
import gpu
import gpu_ours
import peer
import stock_flax

WORK = compare.Work(dtype="float32", batch_size=32, image_size=224, seconds=0.0)
LIMITS = {"rounds": 2, "timeout_seconds": 60}


def record(number, name, train, forward, dtype="float32"):
    speeds = {"train_images_per_second": train, "eval_images_per_second": forward}
    return {"round": number, "name": name, "dtype": dtype, "device": "cpu", **speeds}


def failure(number, name, error):
    return {"round": number, "name": name, "dtype": "float32", "error": error}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def rows(records):
    """The lines of the table by contender and dtype, without its head."""
    lines = [cells(line) for line in compare.table(records).splitlines()[2:]]
    return {tuple(line[:2]): line[2:] for line in lines}


def test_ratios_are_those_of_the_same_round():
    # The machine is twice as fast in round 2: every ratio is 2, those of medians are not.
    records = [record(1, "ours", 10, 40), record(1, "a", 5, 20)]
    records += [record(2, "ours", 20, 80), record(2, "a", 10, 40)]
    records += [record(3, "ours", 12, 12)]
    assert rows(records)[("a", "float32")] == [
        "cpu",
        "5.00 / 7.50 / 10.0",
        "2.00 / 2.00 / 2.00",
        "20.0 / 30.0 / 40.0",
        "2.00 / 2.00 / 2.00",
    ]


@pytest.mark.parametrize(
    ("records", "key", "column", "text"),
    [
        # Only what was measured in the same dtype is compared.
        (
            [
                *(record(1, "ours", 10, 40), record(1, "ours", 30, 90, "bfloat16")),
                record(1, "a", 10, 10, "bfloat16"),
            ],
            ("a", "bfloat16"),
            2,
            "3.00 / 3.00 / 3.00",
        ),
        ([record(1, "ours", 10, 40)], ("ours", "float32"), 2, "-"),
        ([failure(1, "ours", "x"), record(1, "a", 5, 20)], ("a", "float32"), 2, "-"),
        ([failure(2, "a", "no a | b")], ("a", "float32"), 0, "failed: no a \\| b"),
    ],
)
def test_a_cell_of_the_table(records, key, column, text):
    assert rows(records)[key][column] == text
    counts = {len(cells(line)) for line in compare.table(records).splitlines()}
    assert counts == {len(compare.COLUMNS + compare.SPEED_COLUMNS)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.034, "0.03"), (9.876, "9.88"), (98.76, "98.8"), (987.6, "988"), (23456.7, "23457")],
)
def test_figures(value, text):
    assert compare.figure(value) == text


ANSWER = {
    "train_images_per_second": 2.0,
    "eval_images_per_second": 8.0,
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 32,
    "image_size": 224,
}


def program(tmp_path, name, body):
    path = tmp_path / f"{name}.py"
    path.write_text(f"import json, sys, time\nanswer = {ANSWER}\n{body}\n")
    return compare.Entry(name, WORK, (sys.executable, str(path)))


def test_contenders_run_in_turn_and_failures_do_not_stop_the_rest(tmp_path, capfd):
    log = tmp_path / "log"
    well = "open({!r}, 'a').write({!r}); print('a line'); print(json.dumps(answer))"
    entries = [
        program(tmp_path, "a", well.format(str(log), "a")),
        program(tmp_path, "b", "print('x', file=sys.stderr); raise ValueError('broken')"),
        program(tmp_path, "c", well.format(str(log), "c")),
    ]
    records = compare.run_rounds(entries, **LIMITS)
    assert log.read_text() == "acac"
    assert [(r["round"], r["name"]) for r in records] == [
        *[(1, "a"), (1, "b"), (1, "c")],
        *[(2, "a"), (2, "c")],
    ]
    assert records[1]["error"] == "ValueError: broken"
    assert records[0]["train_images_per_second"] == ANSWER["train_images_per_second"]
    stderr = capfd.readouterr().err
    assert "Traceback" in stderr  # All of what it said, for whoever looks for the cause.
    assert "round 2 of 2: a float32: train 2.00 img/s, forward 8.00 img/s" in stderr


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "the last line is not a JSON object"),
        ("print(3)", "the last line is not a JSON object"),
        (
            "del answer['device']; print(json.dumps(answer))",
            "the last line has no 'device'",
        ),
        (
            "print(json.dumps(answer | {'batch_size': 64}))",
            "it measured batch_size 64, not 32",
        ),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_an_answer_to_another_question_is_a_failure(tmp_path, body, error):
    (result, *_) = compare.run_rounds([program(tmp_path, "a", body)], **LIMITS)
    assert result["error"].startswith(error)


def test_a_contender_that_hangs_is_stopped(tmp_path):
    entry = program(tmp_path, "a", "time.sleep(60)")
    (result,) = compare.run_rounds([entry], rounds=1, timeout_seconds=0.5)
    assert result["error"] == "not finished after 0.5 s"


def test_a_program_that_is_not_there_is_a_failure(tmp_path):
    entry = compare.Entry("a", WORK, (str(tmp_path / "python"),))
    (result,) = compare.run_rounds([entry], **LIMITS)
    assert "No such file" in result["error"]


def test_the_command_prints_the_table_keeps_the_figures_and_fails(
    tmp_path, monkeypatch, run_command
):
    def environment(name, folder):
        if name == "pytorch":
            raise compare.ContenderError("pip has no torch")
        python = tmp_path / name
        python.write_text(f"#!{sys.executable}\nprint({json.dumps(ANSWER)!r})\n")
        python.chmod(0o755)
        return str(python)

    monkeypatch.setattr(compare, "make_environment", environment)
    monkeypatch.chdir(tmp_path)  # Which is not where contenders run.
    output = tmp_path / "out.json"
    options = ["--only=ours,stock_flax,pytorch", "--rounds=1", f"--output={output}"]
    code, stdout, _ = run_command(compare, "--environments=e", *options)
    assert code == 1
    lines = [cells(line) for line in stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == ["pytorch", "ours", "stock_flax"]
    assert lines[0][2] == "failed: pip has no torch"
    assert lines[2][4] == "1.00 / 1.00 / 1.00"
    raw = json.loads(output.read_text())
    assert [r["name"] for r in raw["records"]] == ["pytorch", "ours", "stock_flax"]
    code, _, _ = run_command(compare, "--python=ours=ours", "--only=ours", "--rounds=1")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only=caffe"], "--only has 'caffe'"),
        (["--dtypes=float64"], "--dtypes has 'float64'"),
        (["--python=torch=p"], "--python has 'torch'"),
        (["--rounds=0"], "--rounds must be at least 1"),
    ],
)
@pytest.mark.parametrize("script", [compare, gpu])
def test_a_mistake_in_the_flags_exits_2_and_says_so(script, arguments, error, run_command):
    more = ["--environments=e"] if script is compare else []
    code, _, stderr = run_command(script, *arguments, *more)
    assert code == 2
    assert error in stderr


def test_a_contender_without_an_environment_is_refused(run_command):
    options = "--only=pytorch,ours", "--python=ours=p"
    code, _, stderr = run_command(compare, *options)
    assert code == 2
    assert "give --environments=DIR or --python p" in stderr


@pytest.fixture
def made(monkeypatch):
    """The folders in which an environment was made; pip installs nothing."""
    made = []

    def create(path, **options):
        made.append(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "pyvenv.cfg").touch()

    monkeypatch.setattr(compare.venv, "create", create)
    monkeypatch.setattr(compare, "run", lambda command, **limits: "")
    return made


def test_an_environment_is_made_once_and_again_for_new_requirements(
    tmp_path, monkeypatch, made
):
    folder = tmp_path / "environments" / "pytorch"
    monkeypatch.setattr(compare, "BENCHMARKS", tmp_path)
    requirements = tmp_path / "requirements-pytorch.txt"
    for text, count in [("torch==1", 1), ("torch==1", 1), ("torch==2", 2)]:
        requirements.write_text(text)
        python = compare.make_environment("pytorch", folder)
        assert (python, len(made)) == (str(folder / "bin" / "python"), count)


def test_an_environment_that_pip_did_not_finish_is_made_again(tmp_path, monkeypatch, made):
    def no_network(command, **limits):
        raise compare.ContenderError("no network")

    monkeypatch.setattr(compare, "run", no_network)
    for count in (1, 2):
        with pytest.raises(compare.ContenderError, match="no network"):
            compare.make_environment("pytorch", tmp_path / "e")
        assert len(made) == count


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(compare.ContenderError, match="not a virtual environment"):
        compare.make_environment("pytorch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_contender_has_its_requirements_and_its_script():
    for contender in compare.CONTENDERS.values():
        name = contender.environment.replace("_", "-")
        assert (compare.BENCHMARKS / f"requirements-{name}.txt").exists()
        first = contender.arguments(WORK)[0]
        assert first == "-m" or (REPOSITORY / first).exists()


@pytest.mark.parametrize(
    ("ticks", "seconds", "speeds", "num_steps", "num_waits"),
    [
        # Three steps to warm up, and then each is timed.
        ([0, 9, 0, 4, 0, 2, 0, 1, 0, 3, 0, 80], 5, [30 / 1, 30 / 3, 30 / 80], 6, 6),
        # A fast device is waited for ten times: ten steps in 20 s each.
        ([0, 1] * 3 + [0, 20] * 10, 100, [30 / 2] * 10, 3 + 100, 3 + 10),
    ],
)
def test_speed_is_the_batch_over_the_time_of_a_step(
    monkeypatch, ticks, seconds, speeds, num_steps, num_waits
):
    clock = iter(ticks)
    monkeypatch.setattr(peer.time, "perf_counter", lambda: next(clock))
    steps, waits = [], []
    work = peer.Work("float32", batch_size=30, image_size=224, seconds=seconds)
    result = peer.images_per_second(lambda: steps.append(0), waits.append, work)
    assert result == speeds
    assert (len(steps), len(waits)) == (num_steps, num_waits)


@pytest.mark.parametrize("image_size", [96, 100, 224])
def test_the_peers_expect_our_number_of_parameters(image_size):
    layers = ORIGINALS["seed"].layers(image_size)
    count = sum((x.side**2 * x.inputs + 1) * x.outputs for x in layers)
    peer.check_parameters(count, image_size)
    with pytest.raises(ValueError, match="parameters instead of"):
        peer.check_parameters(count + 1, image_size)


def flat_weights(image_size):
    """Kernels and biases by the names of the paper's layers, `aux_4a/fc/kernel`."""
    weights = to_flax("seed", image_size, draw_weights("seed", image_size))
    return {
        path.removeprefix("params/").replace("/conv/", "/"): array
        for path, array in weights.items()
    }


def in_stock_flax(image_size, images, labels):
    model = stock_flax.GoogLeNet("float32")
    params = {"params": traverse_util.unflatten_dict(flat_weights(image_size), sep="/")}
    tx = optax.sgd(peer.LEARNING_RATE, momentum=peer.MOMENTUM)
    state = jax.device_put((params, tx.init(params), jax.random.key(0)))

    def outputs():
        return jax.jit(lambda x: model.apply(params, x, train=False))(images)

    def losses():
        nonlocal state
        train_step = stock_flax.make_train_step(model, tx)
        while True:
            *state, loss = train_step(*state, images, labels)
            yield loss

    return outputs, losses()


def in_keras_tensorflow(image_size, images, labels):
    pytest.importorskip("tensorflow")
    keras_tensorflow = importlib.import_module("keras_tensorflow")

    model = keras_tensorflow.create_model(image_size)
    weights = flat_weights(image_size)
    for name in {path.rpartition("/")[0] for path in weights}:
        layer = model.get_layer(name.replace("/", "_"))
        layer.set_weights([weights[f"{name}/kernel"], weights[f"{name}/bias"]])

    def losses():
        train_step = keras_tensorflow.make_train_step(model, jit=False)
        while True:
            yield train_step(images, labels)

    return lambda: model(images, training=False), losses()


def in_pytorch(image_size, images, labels):
    torch = pytest.importorskip("torch")
    pytorch = importlib.import_module("pytorch")

    def torch_entry(path, array):
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        name = path.replace("/", ".").replace("kernel", "weight")
        return name, torch.tensor(array.transpose(axes))

    model = pytorch.GoogLeNet(image_size).to(memory_format=torch.channels_last)
    entries = (torch_entry(*item) for item in flat_weights(image_size).items())
    model.load_state_dict(dict(entries))
    images = torch.tensor(images).permute(0, 3, 1, 2)
    options = {"dtype": "float32", "compiled": False}

    def outputs():
        with torch.inference_mode():
            (main,) = model.eval()(images)
            assert torch.equal(main, pytorch.make_eval_step(model, **options)(images))
            return [x.numpy() for x in model.train()(images)]  # Also makes the heads.

    def losses():
        train_step = pytorch.make_train_step(model, **options)
        while True:
            yield train_step(images, torch.tensor(labels).long())

    return outputs, losses()


PEERS = [in_stock_flax, in_keras_tensorflow, in_pytorch]
LABELS = np.array([3, 7], np.int32)


@pytest.fixture
def no_dropout(monkeypatch):
    for module, name in [
        *((peer, name) for name in ("DROPOUT", "AUX_DROPOUT")),
        (our_model, "AUX_DROPOUT_RATE"),
    ]:
        monkeypatch.setattr(module, name, 0.0)


@pytest.mark.parametrize("image_size", [100, pytest.param(96, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make_peer", PEERS)
def test_peers_compute_the_logits_of_the_original(make_peer, image_size, no_dropout):
    outputs, _ = make_peer(image_size, draw_images("seed", image_size), LABELS)
    differences = relative_differences(stored_outputs("seed", str(image_size)), outputs())
    assert max(differences.values()) < TOLERANCE, differences


@functools.cache
def our_losses(image_size, steps):
    """Losses of our training without dropout."""
    variant = dataclasses.replace(VARIANTS["seed"], dropout_rate=0.0)
    model = GoogLeNet(num_classes=peer.NUM_CLASSES, variant=variant)
    flat = to_flax("seed", image_size, draw_weights("seed", image_size))
    params = traverse_util.unflatten_dict(flat, sep="/")
    images = draw_images("seed", image_size)
    tx = create_optimizer(
        optax.constant_schedule(peer.LEARNING_RATE),
        momentum=peer.MOMENTUM,
        weight_decay=0.0,
    )

    def loss_fn(params):
        output = model.apply(
            params, images, train=True, rngs={"dropout": jax.random.key(0)}
        )
        metrics = example_metrics(output, LABELS, aux_weight=peer.AUX_WEIGHT)
        return metrics["loss"].mean()

    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for _ in range(steps):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("make_peer", PEERS)
def test_peers_train_as_we_do(make_peer, no_dropout):
    # The second loss follows from the gradient, the third from the momentum too.
    image_size = 96
    _, losses = make_peer(image_size, draw_images("seed", image_size), LABELS)
    theirs = [float(loss) for loss in itertools.islice(losses, 4)]
    ours = our_losses(image_size, 4)
    assert theirs == pytest.approx(ours, rel=1e-4)


GPU_ENTRY = gpu.Entry("float32", "paper", gpu.BEST)
GPU_WORK = gpu_ours.Work(batch_size=2, image_size=80, width_multiplier=0.25, seconds=0.0)


def gpu_results(path, **work):
    return gpu.Results(path / "gpu.json", {"batch_size": 256, **work})


def gpu_record(name, dtype, train, rounds=1, **fields):
    figures = {"train": train, "eval": train, "rounds": rounds, "run": "today"}
    return {"name": name, "dtype": dtype, **figures, **fields}


def run_gpu(run_command, *options):
    tiny = ["--batch_size=2", "--image_size=80", "--width_multiplier=0.1"]
    tiny += ["--seconds=0.01", "--rounds=2"]
    return run_command(gpu, "--platform=cpu", *tiny, *options)


@pytest.fixture
def keep_environment(monkeypatch):
    monkeypatch.setattr(gpu.os, "environ", dict(gpu.os.environ))


def test_the_arithmetics_to_measure_hold_stock_and_what_gpus_use():
    assert gpu_ours.find_arithmetic("stock") == STOCK
    assert FASTEST["gpu"] in map(gpu_ours.find_arithmetic, gpu.CHOICES)


@pytest.mark.slow
def test_our_networks_are_measured_though_one_fails(tmp_path, monkeypatch):
    def build(entry, choice, work):
        if choice == "merge_1x1":
            raise MemoryError("no | memory")
        arithmetic = gpu_ours.find_arithmetic(choice)
        return small_googlenet(entry.variant, dtype=entry.dtype, arithmetic=arithmetic)

    monkeypatch.setattr(gpu_ours, "build_model", build)
    results = gpu_results(tmp_path)
    entries = [gpu.Entry("float32", "seed", "merge_1x1"), GPU_ENTRY]
    options = {"rounds": 2, "deadline": time.time() + 600, "run": "today"}
    gpu_ours.measure(entries, results, GPU_WORK, **options)
    failed, record = gpu_results(tmp_path)  # As they stand in the file.
    assert failed["error"] == "MemoryError: no | memory"
    assert (len(record["train"]), len(record["eval"]), record["rounds"]) == (2, 2, 2)
    assert min(record["train"] + record["eval"]) > 0
    assert record["memory_bytes"] > 1e6
    assert record["title"] == f"paper {gpu.BOTH}"


def test_our_networks_wait_for_another_run_when_time_is_up(tmp_path, monkeypatch):
    results = gpu_results(tmp_path)
    options = {"rounds": 2, "deadline": time.time() + 1, "run": "today"}
    gpu_ours.measure([GPU_ENTRY], results, GPU_WORK, **options)
    assert not list(results)


def test_gpu_ratios_are_those_of_medians_to_the_compiled_torch(tmp_path):
    results = gpu_results(tmp_path)
    results.put(gpu_record(*gpu.REFERENCE, [9.0, 10.0, 12.0]))
    results.put(
        gpu_record("paper best", "bfloat16", [15.0, 30.0], 0, title="paper x", limit=45)
    )
    results.put(failure(1, "seed stock", "no a | b") | {"dtype": "bfloat16"})
    keys = [(name, "bfloat16") for name in ("paper best", "seed stock", "pytorch")]
    lines = [cells(line) for line in gpu.table(keys, results).splitlines()]
    assert {len(line) for line in lines} == {len(gpu.TABLE_HEAD)}
    assert lines[2][:2] == ["paper x (first window)", "bfloat16"]
    assert lines[2][2:5] == ["15.0 / 22.5 / 30.0", "2.25", "50%"]
    assert lines[3][2] == "failed: no a \\| b"
    assert lines[4][2] == "not measured: out of time"


def test_the_best_arithmetic_is_the_one_that_trains_fastest(tmp_path):
    results = gpu_results(tmp_path)
    assert results.best_choice("bfloat16") == gpu.BOTH
    results.put(gpu_record("seed stock", "bfloat16", [5.0]))
    results.put(gpu_record("seed merge_1x1", "bfloat16", [1.0, 6.0, 7.0]))
    results.put(gpu_record("seed gather_max_pool", "float32", [9.0]))
    assert results.best_choice("bfloat16") == "merge_1x1"


def test_without_time_nothing_is_started(tmp_path, run_command, keep_environment):
    code, stdout, _ = run_gpu(run_command, "--budget_seconds=5")
    assert code == 0
    assert stdout.count("not measured: out of time") == 8 + 6 + 7
    for entry in gpu.our_entries(gpu.DTYPES):
        assert f"| {entry.key[0]} | {entry.dtype} | not measured" in stdout


def test_a_second_gpu_run_measures_only_what_is_missing(
    tmp_path, monkeypatch, run_command, keep_environment
):
    log, python, output = (tmp_path / name for name in ("log", "python", "gpu.json"))
    answer = ANSWER | {"batch_size": 2, "image_size": 80, "train_windows": [1.0, 3.0]}
    body = f"import sys; open({str(log)!r}, 'a').write('x'); print({json.dumps(answer)!r})"
    python.write_text(f"#!{sys.executable}\n{body}\n")
    python.chmod(0o755)
    days = iter(["Monday", "Tuesday", "Wednesday"])
    monkeypatch.setattr(gpu.time, "strftime", lambda _: next(days))
    options = [f"--output={output}", f"--python=pytorch={python}", "--dtypes=float32"]
    code, stdout, _ = run_gpu(run_command, "--only=pytorch", *options)
    assert (code, log.read_text()) == (0, "x")
    assert "| pytorch | float32 | 1.00 / 2.00 / 3.00 |" in stdout
    code, stdout, _ = run_gpu(run_command, "--only=pytorch,pytorch_compile", *options)
    assert (code, log.read_text()) == (0, "xx")
    assert "The figures are of 2 runs, which began Monday, Tuesday." in stdout
    code, _, stderr = run_gpu(run_command, *options, "--batch_size=4")
    assert code == 2
    assert "name another --output" in stderr


def test_gpu_contenders_that_fail_are_named(tmp_path, run_command, keep_environment):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nraise OSError('no | GPU')\n")
    python.chmod(0o755)
    pythons = [f"--python={name}={python}" for name in ("ours", "pytorch")]
    options = [*pythons, "--only=stock,pytorch", "--dtypes=bfloat16"]
    code, stdout, stderr = run_gpu(run_command, *options)
    assert code == 1
    assert "| seed stock | bfloat16 | failed: exit code 1: OSError: no \\| GPU |" in stdout
    assert "| pytorch | bfloat16 | failed: OSError: no \\| GPU |" in stdout
    assert "Traceback" in stderr


@pytest.mark.slow
def test_the_gpu_command_measures_ours_in_a_process(
    tmp_path, run_command, keep_environment
):
    options = ["--only=stock", "--dtypes=float32", f"--output={tmp_path / 'gpu.json'}"]
    code, stdout, _ = run_gpu(run_command, *options, "--budget_seconds=600")
    assert code == 0
    (line,) = [cells(x) for x in stdout.splitlines() if x.startswith("| seed stock")]
    assert line[2].count("/") == 2
