import dataclasses
import importlib
import itertools
import json
import statistics
import sys

import compare
import compiled
import gpu
import jax
import numpy as np
import optax
import ours
import peer
import pytest
import stock_flax
from flax import traverse_util
from helpers.networks import small_googlenet
from helpers.paths import REPOSITORY
from originals.weights import ORIGINALS, draw_images, draw_weights, to_flax
from test_parity import TOLERANCE, relative_differences, stored_outputs

from googlenet_flax.model import googlenet as our_model
from googlenet_flax.model.convolution import FASTEST, STOCK
from googlenet_flax.training.state import TrainState

WORK = compare.Work(dtype="float32", batch_size=32, image_size=224, seconds=0.0)
LIMITS = {"rounds": 2, "timeout_seconds": 60}


def record(number, name, train, forward, dtype="float32"):
    speeds = {"train_images_per_second": train, "eval_images_per_second": forward}
    return {"round": number, "name": name, "dtype": dtype, "device": "cpu", **speeds}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_table_has_ratios_of_the_same_round_and_dtype():
    # Every ratio within a round is 2. Ratios of the medians are not, because the machine is
    # twice as fast in round 2, and round 3 has no float32 figures of `a`.
    failure = {"round": 2, "name": "b", "dtype": "float32", "error": "no b | c"}
    records = [
        *(record(1, "ours", 10, 40), record(1, "a", 5, 20)),
        *(record(2, "ours", 20, 80), record(2, "a", 10, 40), failure),
        *(record(3, "ours", 12, 12), record(3, "a", 1, 1, "bfloat16")),
    ]
    head, _, ours, a, b, alone = map(cells, compare.table(records).splitlines())
    assert ours == ["ours", "float32", "cpu", "10.0 / 12.0 / 20.0", "-", ours[5], "-"]
    assert a == [
        *("a", "float32", "cpu", "5.00 / 7.50 / 10.0", "2.00 / 2.00 / 2.00"),
        *("20.0 / 30.0 / 40.0", "2.00 / 2.00 / 2.00"),
    ]
    assert b[2] == "failed: no b \\| c"
    assert alone[4] == "-"
    assert {len(line) for line in (ours, a, b, alone)} == {len(head)}


ANSWER = {
    "train_images_per_second": 2.0,
    "eval_images_per_second": 8.0,
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 32,
    "image_size": 224,
}


def write_program(path, *lines):
    path.write_text("\n".join([f"#!{sys.executable}", *lines]))
    path.chmod(0o755)


def program(tmp_path, name, body):
    write_program(tmp_path / name, "import json, sys, time", f"answer = {ANSWER}", body)
    return compare.Entry(name, WORK, (str(tmp_path / name),))


def test_contenders_run_in_turn_and_failures_do_not_stop_the_rest(tmp_path, capfd):
    log = tmp_path / "log"
    well = "open({!r}, 'a').write({!r}); print('a line'); print(json.dumps(answer))"
    entries = [
        program(tmp_path, "a", well.format(str(log), "a")),
        program(tmp_path, "b", "raise ValueError('broken\\nat line 3')"),
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
    assert "Traceback" in stderr  # The whole stderr helps to find the cause.
    assert "round 2 of 2: a float32: train 2.00 img/s, forward 8.00 img/s" in stderr


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("print(3)", "the last line is not a JSON object"),
        ("del answer['device']; print(json.dumps(answer))", "the last line has no"),
        ("print(json.dumps(answer | {'batch_size': 64}))", "it measured batch_size 64"),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_an_answer_to_another_question_is_a_failure(tmp_path, body, error):
    (result, *_) = compare.run_rounds([program(tmp_path, "a", body)], **LIMITS)
    assert result["error"].startswith(error)


def test_contenders_that_hang_or_do_not_exist_are_failures(tmp_path):
    entries = [
        program(tmp_path, "a", "time.sleep(60)"),
        compare.Entry("b", WORK, (str(tmp_path / "python"),)),
    ]
    hung, absent = compare.run_rounds(entries, rounds=1, timeout_seconds=0.5)
    assert hung["error"] == "not finished after 0.5 s"
    assert "No such file" in absent["error"]


def test_the_command_prints_the_table_keeps_the_figures_and_fails(
    tmp_path, monkeypatch, run_command
):
    def environment(name, folder):
        if name == "pytorch":
            raise compare.ContenderError("pip has no torch")
        python = tmp_path / name
        write_program(python, f"print({json.dumps(ANSWER)!r})")
        return str(python)

    monkeypatch.setattr(compare, "make_environment", environment)
    monkeypatch.chdir(tmp_path)  # Contenders run in another directory.
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


IN_FOLDER = "--environments=e"


@pytest.mark.parametrize(
    ("script", "arguments", "error"),
    [
        (compare, [IN_FOLDER, "--only=caffe"], "--only has 'caffe'"),
        (compare, [IN_FOLDER, "--dtypes=float64"], "--dtypes has 'float64'"),
        (compare, [IN_FOLDER, "--python=torch=p"], "--python has 'torch'"),
        (compare, [IN_FOLDER, "--rounds=0"], "--rounds must be at least 1"),
        (compare, ["--only=pytorch"], "give --environments=DIR or --python pytorch=PATH"),
        (gpu, ["--output=gpu.json", "--only=caffe"], "--only has 'caffe'"),
        (ours, ["--arithmetic=pool_last"], "argument --arithmetic: invalid"),
    ],
)
def test_a_mistake_in_the_flags_exits_2_and_says_so(script, arguments, error, run_command):
    code, _, stderr = run_command(script, *arguments)
    assert code == 2
    assert error in stderr


def test_an_environment_is_made_until_pip_succeeds_and_for_new_requirements(
    tmp_path, monkeypatch
):
    def create(path, **options):
        made.append(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "pyvenv.cfg").touch()

    def pip(command, **limits):
        if requirements.read_text() == "torch==0":
            raise compare.ContenderError("no network")

    made, requirements = [], tmp_path / "requirements-pytorch.txt"
    folder = tmp_path / "environments" / "pytorch"
    monkeypatch.setattr(compare, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(compare.venv, "create", create)
    monkeypatch.setattr(compare, "run", pip)
    requirements.write_text("torch==0")
    for count in (1, 2):
        with pytest.raises(compare.ContenderError, match="no network"):
            compare.make_environment("pytorch", folder)
        assert len(made) == count
    for text, count in [("torch==1", 3), ("torch==1", 3), ("torch==2", 4)]:
        requirements.write_text(text)
        python = compare.make_environment("pytorch", folder)
        assert (python, len(made)) == (str(folder / "bin" / "python"), count)


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(compare.ContenderError, match="not a virtual environment"):
        compare.make_environment("pytorch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_contender_has_its_requirements_and_its_script():
    for contender in compare.CONTENDERS.values():
        name = contender.environment.replace("_", "-")
        assert (compare.BENCHMARKS / f"requirements-{name}.txt").exists()
        first = contender.program[0]
        assert first == "-m" or (REPOSITORY / first).exists()


@pytest.mark.parametrize(
    ("ticks", "seconds", "speeds", "num_steps", "num_waits"),
    [
        # After three steps to warm up, each step is timed.
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
    """Returns kernels and biases by the paper's layers, such as `aux_4a/fc/kernel`."""
    weights = to_flax("seed", image_size, draw_weights("seed", image_size))
    return {
        path.removeprefix("params/").replace("/conv/", "/"): array
        for path, array in weights.items()
    }


def in_stock_flax(image_size, images, labels):
    model = stock_flax.GoogLeNet("float32")
    params = {"params": traverse_util.unflatten_dict(flat_weights(image_size), sep="/")}

    def outputs():
        return jax.jit(lambda x: model.apply(params, x, train=False))(images)

    def losses():
        tx = optax.sgd(peer.LEARNING_RATE, momentum=peer.MOMENTUM)
        state = jax.device_put((params, tx.init(params), jax.random.key(0)))
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
            return [x.numpy() for x in model.train()(images)]  # Includes the heads.

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
    seed = dataclasses.replace(our_model.VARIANTS["seed"], dropout_rate=0.0)
    monkeypatch.setitem(our_model.VARIANTS, "seed", seed)


@pytest.mark.parametrize("image_size", [100, pytest.param(96, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make_peer", PEERS)
def test_peers_compute_the_logits_of_the_original(make_peer, image_size, no_dropout):
    outputs, _ = make_peer(image_size, draw_images("seed", image_size), LABELS)
    differences = relative_differences(stored_outputs("seed", str(image_size)), outputs())
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.slow
@pytest.mark.parametrize("make_peer", PEERS)
def test_peers_train_as_we_do(make_peer, no_dropout, monkeypatch):
    """Compares losses: the second depends on the gradient, the third on the momentum."""
    images, flat = draw_images("seed", 96), to_flax("seed", 96, draw_weights("seed", 96))
    _, losses = make_peer(96, images, LABELS)
    params = traverse_util.unflatten_dict(flat, sep="/")["params"]
    state = TrainState(np.int32(0), params, {}, ours.create_sgd().init(params))
    monkeypatch.setattr(ours, "initial_state", lambda *_: state)
    monkeypatch.setattr(peer, "draw_batch", lambda _: (images, LABELS))
    work = peer.Work("float32", batch_size=2, image_size=96, seconds=0.0)
    train, _, _ = ours.make_steps("seed", STOCK, work)
    theirs = [float(loss) for loss in itertools.islice(losses, 4)]
    assert theirs == pytest.approx([float(train()) for _ in range(4)], rel=1e-4)


@pytest.fixture
def run_gpu(tmp_path, monkeypatch, run_command):
    """Runs gpu.py with a stand-in for the peers; returns exit code and table."""
    monkeypatch.setattr(gpu.os, "environ", dict(gpu.os.environ))
    monkeypatch.setattr(gpu, "find_gpu", lambda: "a GPU")
    python, log = tmp_path / "python", tmp_path / "log"

    def run_gpu(body, *options):
        answer = ANSWER | {"dtype": "bfloat16", "batch_size": 256, "device": "GPU"}
        answer["train_windows"] = [1, 2, 3]
        lines = ["import json, sys, time", f"open({str(log)!r}, 'a').write('x')"]
        write_program(python, *lines, f"answer = {answer}", body)
        pythons = [f"--python={name}={python}" for name in ("pytorch", "stock_flax")]
        pythons += ["--only=pytorch_compile,pytorch,stock_flax"]
        options = [*pythons, f"--output={tmp_path / 'gpu.json'}", *options]
        code, stdout, stderr = run_command(gpu, "--dtypes=bfloat16", *options)
        lines = [cells(line) for line in stdout.splitlines() if line.startswith("| ")]
        calls = len(log.read_text()) if log.exists() else 0
        return code, [line[2] for line in lines[2:]], calls, stderr

    return run_gpu


def test_without_a_gpu_the_command_says_so(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(gpu.os, "environ", {**gpu.os.environ, "PATH": str(tmp_path)})
    line = refused(gpu, f"--output={tmp_path / 'gpu.json'}")
    assert line.startswith("gpu.py: there is no NVIDIA GPU: ")


def test_a_second_gpu_run_measures_only_what_is_missing(run_gpu):
    late = ["not measured: out of time"] * 3
    code, rows, calls, _ = run_gpu("", "--budget_seconds=0")
    assert (code, rows, calls) == (0, late, 0)
    failing = "print(json.dumps(answer)) if 'pytorch' in sys.argv[1] else 1 / 0"
    code, rows, calls, stderr = run_gpu(failing)
    measured = "1.00 / 2.00 / 3.00"
    failed = "failed: ZeroDivisionError: division by zero"
    assert (code, rows, calls) == (1, [measured, measured, failed], 3)
    assert "Traceback" in stderr
    code, rows, calls, _ = run_gpu("print(json.dumps(answer))")
    assert (code, rows, calls) == (0, [measured] * 3, 4)
    code, _, _, stderr = run_gpu("", "--batch_size=4")
    assert code == 2 and "name another --output" in stderr


def test_figures_of_a_cpu_are_refused(run_gpu):
    code, rows, _, _ = run_gpu("print(json.dumps(answer | {'device': 'cpu'}))")
    assert (code, rows) == (1, ["failed: it ran on the CPU"] * 3)


def test_a_gpu_contender_that_hangs_is_stopped(run_gpu):
    code, rows, _, _ = run_gpu("time.sleep(60)", "--budget_seconds=0.5")
    assert (code, rows) == (0, ["not measured: out of time"] * 3)


def test_gpu_ratios_are_those_of_medians_to_the_compiled_torch():
    def row(windows, **fields):
        speeds = dict.fromkeys(compare.SPEEDS, statistics.median(windows))
        return {"train_windows": windows, "eval_windows": windows, **speeds, **fields}

    best, failing, absent = ((name, "bfloat16") for name in list(gpu.CONTENDERS)[1:4])
    rows = {
        (gpu.REFERENCE, "bfloat16"): row([9.0, 10.0, 12.0]),
        best: row([15.0, 30.0], limit=45, peak_memory_bytes=2**31),
        failing: {"error": "no a | b"},
    }
    table = gpu.table([*rows, absent], rows)
    head, _, reference, best, failed, absent = map(cells, table.splitlines())
    spread = "15.0 / 22.5 / 30.0"
    assert best[2:] == [spread, "2.25", "50%", spread, "2.25", "2.00"]
    assert failed[2] == "failed: no a \\| b"
    assert reference[3:5] == ["1.00", "-"]
    assert absent[2] == "not measured: out of time"
    assert {len(line) for line in (best, failed, reference, absent)} == {len(head)}


def test_gpu_networks_have_the_arithmetic_that_runs_use():
    choices = {
        variant: ours.choose_arithmetic(choice) for variant, choice in gpu.NETWORKS[:3]
    }
    assert choices == dict.fromkeys(("seed", "bn", "paper"), FASTEST["gpu"])
    assert ours.choose_arithmetic("stock") == STOCK


@pytest.mark.slow
def test_our_network_is_measured(monkeypatch, run_command):
    def build(variant, *, dtype="float32", **fields):
        return small_googlenet(variant, dtype=np.dtype(dtype), **fields)

    monkeypatch.setattr(ours, "create_model", build)
    options = ["--batch_size=2", "--image_size=80", "--seconds=0.01"]
    program = gpu.CONTENDERS[f"paper {gpu.FASTEST}"].program
    code, stdout, _ = run_command(ours, *program[1:], *options)
    assert code == 0
    row = compare.read_answer(stdout, peer.Work("float32", 2, 80, 0.01))
    assert len(row["train_windows"]) >= 3
    assert min(row[speed] for speed in (*compare.SPEEDS, "limit")) > 0
    assert row["peak_memory_bytes"] > 1e6


PROGRAM = """HloModule step

%inner (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

ENTRY %main (a: f32[4,8], b: f32[8]) -> bf16[4] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %both = (f32[4]{0}, f32[4]{0}) fusion(%a, %b, %b), config={"estimated_cycles":"70"}
  %one = f32[4]{0} get-tuple-element(%both), index=0
  ROOT %out = bf16[4]{0} convert(%one), config={"estimated_cycles":"5"}
}
"""


def test_figures_of_a_compiled_program():
    # The fusion reads 128 and 32 bytes and writes 32; the conversion reads 16 and writes 8.
    assert compiled.traffic_bytes(PROGRAM) == 128 + 32 + 32 + 16 + 8
    assert compiled.estimated_cycles(PROGRAM) == 75
