"""The scripts of docs/launch, with stand-ins for the clusters."""

import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time

import pytest
import yaml
from helpers.configs import load_config
from helpers.paths import REPOSITORY
from helpers.processes import finish, start_program, wait_for_line
from helpers.tiny_run import FINAL_STEP, saved_steps, tiny_flags

from googlenet_flax.config import Config

LAUNCH = REPOSITORY / "docs" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# Under Slurm, JAX adds the number of the job modulo 4096 to this port.
FIRST_SLURM_PORT = 61440

# A stand-in for srun. It takes options up to the command, which it starts once for each
# task, and exits with the highest code of the tasks.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    assert "=" in arguments.pop(0)
tasks = [
    subprocess.Popen(arguments, env={{
        **os.environ,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }})
    for number in range(2)
]
sys.exit(max(task.wait() % 256 for task in tasks))
"""
# A stand-in for python. `-c` runs the real one. `-m` exits with the code that its process
# is given, or waits for SIGTERM where that code is "wait".
PYTHON = f"""#!{sys.executable}
import os, re, signal, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
signal.alarm(300)  # No process is left for long if a test fails.
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
os.write(1, " ".join(["started", *sys.argv[1:]]).encode() + b"\\n")
number = int(re.search(r"--process_id=(\\d+)", " ".join(sys.argv))[1])
code = os.environ["CODES"].split(",")[number]
while code == "wait":
    signal.pause()
sys.exit(int(code))
"""
RECORD = """#!/usr/bin/env bash
echo "$(basename "$0")" "$@" >> "$RECORD"
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program of a given name at the front of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))

    def stand_in(name: str, text: str):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return folder / name

    return stand_in


def start(script, *args, **env) -> subprocess.Popen:
    """Starts a script as a process in a session of its own."""
    return start_program(LAUNCH / script, *args, env=env, start_new_session=True)


def run(script, *args, **env) -> tuple[int, str, str]:
    """Runs the script; returns its exit code, stdout and stderr."""
    return finish(start(script, *args, **env))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_bash_and_shellcheck_accept_it(path):
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    shellcheck = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


JOBSET = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
(WORKERS,) = JOBSET["spec"]["replicatedJobs"]
JOB = WORKERS["template"]["spec"]
(CONTAINER,) = JOB["template"]["spec"]["containers"]


def test_local_sh_starts_each_process_once(stand_in):
    python = stand_in("python", PYTHON)
    env = {"NUM_PROCESSES": "3", "PYTHON": str(python), "CODES": "0,0,0"}
    code, out, err = run("local.sh", "--workdir=a b", **env)
    assert code == 0, err
    commands = sorted(out.splitlines())
    (port,) = {re.search(r"localhost:(\d+)", command)[1] for command in commands}
    assert commands == [
        "started -m googlenet_flax.main --workdir=a b --config.distributed=True "
        f"--coordinator_address=localhost:{port} --num_processes=3 --process_id={number}"
        for number in range(3)
    ]


def test_local_sh_ends_with_the_first_code_that_is_not_0(stand_in):
    env = {"NUM_PROCESSES": "4", "PYTHON": str(stand_in("python", PYTHON))}
    assert run("local.sh", **env, CODES="0,2,0,1")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_sh_passes_signals_on_as_sigterm(stand_in, number):
    env = {"PYTHON": str(stand_in("python", PYTHON)), "CODES": "wait,wait"}
    process = start("local.sh", **env)
    for _ in range(2):
        assert process.stdout.readline().startswith("started")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # A terminal signals the whole group.
    else:
        process.send_signal(number)
    code, _, err = finish(process)
    assert code == 143, err


@pytest.mark.parametrize(
    ("code", "restarts", "is_requeued"),
    [
        *((code, 0, False) for code in (0, 2, 3, 4)),
        *((code, 0, True) for code in (1, 134, 137, 143)),
        (143, 19, True),
        (143, 20, False),
    ],
)
def test_slurm_sh_requeues_what_can_go_on(stand_in, tmp_path, code, restarts, is_requeued):
    stand_in("srun", f"#!/usr/bin/env bash\necho $*\nexit {code}\n")
    stand_in("scontrol", RECORD)
    env = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
    ended, out, err = run("slurm.sh", "--workdir=run", **env)
    command = "-m googlenet_flax.main --workdir=run --config.distributed=True"
    assert out.strip().endswith(command)
    assert ended == (0 if is_requeued else code), err
    assert (tmp_path / "record").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "record").read_text() == "scontrol requeue 17\n"
        assert f"exit code {code}: requeued" in err


def test_slurm_sh_signals_all_tasks_and_gives_each_all_gpus_of_its_node():
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "gpus-per-task" not in options and "--gpu-bind=none" in text
    assert options["signal"].startswith("TERM@")  # With "B:", only the script gets it.


def test_tpu_pod_sh_runs_the_same_on_all_workers(stand_in, tmp_path):
    archive = tmp_path / "archive.tar.gz"
    copy = f'[[ "$4" == scp ]] && cp "$5" {shlex.quote(str(archive))}\ntrue\n'
    stand_in("gcloud", RECORD + copy)
    env = {"TPU_NAME": "slice", "ZONE": "here", "NFS": "10.0.0.2:/share"}
    code, _, err = run("tpu_pod.sh", "--workdir=/mnt/it's here", **env)
    assert code == 0, err
    record = (tmp_path / "record").read_text()
    copied, setup, train = record.split("gcloud compute tpus tpu-vm ")[1:]
    assert copied.startswith("scp ") and "--worker=all" in copied
    for command in (setup, train):
        assert command.startswith("ssh slice --zone=here --worker=all --command=")
    script = setup.partition("--command=")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "mount -t nfs '10.0.0.2:/share' '/mnt/shared'" in script
    assert "-c constraints.txt '.[tpu]'" in script
    assert shlex.split(train.partition("--command=")[2])[-5:] == [
        *(".venv/bin/python", "-m", "googlenet_flax.main"),
        *("--workdir=/mnt/it's here", "--config.distributed=True"),
    ]
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    assert {"pyproject.toml", "constraints.txt", "googlenet_flax/main.py"} <= names


@pytest.mark.parametrize("missing", ["TPU_NAME", "ZONE", "NFS"])
def test_tpu_pod_sh_says_what_it_needs(missing):
    env = {"TPU_NAME": "slice", "ZONE": "here", "NFS": "10.0.0.2:/share"}
    del env[missing]
    code, _, err = run("tpu_pod.sh", **env)
    assert code != 0
    assert missing in err


def test_jobset_names_its_first_pod_and_their_number():
    assert CONTAINER["command"] == ["python", "-m", "googlenet_flax.main"]
    recipe, *fields = [arg for arg in CONTAINER["args"] if arg.startswith("--config")]
    Config.of(load_config(REPOSITORY / recipe.removeprefix("--config="), *fields))
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in CONTAINER["args"])
    # The host is JOBSET-REPLICATEDJOB-JOB-POD, in a domain with the name of the JobSet.
    name = JOBSET["metadata"]["name"]
    host, _, port = flags["coordinator_address"].partition(":")
    assert host == f"{name}-{WORKERS['name']}-0-0.{name}"
    assert port.isdecimal()
    assert WORKERS["replicas"] == 1
    assert JOB["completions"] == JOB["parallelism"] == int(flags["num_processes"])
    assert JOB["completionMode"] == "Indexed"
    assert flags["process_id"] == "$(JOB_COMPLETION_INDEX)"
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {each["name"] for each in JOB["template"]["spec"]["volumes"]}
    for flag in ("workdir", "config.data_dir"):
        assert flags[flag].startswith(mounts["shared"] + "/")


def test_jobset_restarts_what_can_go_on():
    (rule,) = JOB["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"operator": "In", "values": [2, 3, 4]}
    assert JOB["backoffLimit"] == 0
    assert JOB["template"]["spec"]["restartPolicy"] == "Never"
    policy = JOBSET["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


ONE_DEVICE = {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_local_sh_trains_stops_and_goes_on(tmp_path):
    workdir = tmp_path / "run"
    process = start("local.sh", *tiny_flags(workdir), **ONE_DEVICE)
    wait_for_line(process, "step 3/")
    process.terminate()
    code, out, err = finish(process)
    assert code == 143, err
    assert "on 2 x cpu in 2 processes" in out
    step = max(saved_steps(workdir))
    assert err.count(f"stopped by SIGTERM after step {step}") == 2
    code, out, err = run("local.sh", *tiny_flags(workdir), **ONE_DEVICE)
    assert code == 0, err
    assert f"resuming after step {step}" in out
    assert max(saved_steps(workdir)) == FINAL_STEP


@pytest.mark.slow
def test_slurm_sh_trains_with_what_jax_reads_of_slurm(stand_in, tmp_path):
    stand_in("srun", SRUN)
    stand_in("scontrol", RECORD)
    workdir = tmp_path / "run"
    job = {"SLURM_JOB_ID": str(free_slurm_port() - FIRST_SLURM_PORT)}
    arguments = *tiny_flags(workdir), "--config.max_steps=3"
    code, out, err = run("slurm.sh", *arguments, **ONE_DEVICE, **job)
    assert code == 0, err
    assert "on 2 x cpu in 2 processes" in out
    assert out.count("from scratch") == 1
    assert max(saved_steps(workdir)) == 3
    assert not (tmp_path / "record").exists()


def free_slurm_port() -> int:
    """Returns a free port of those that JAX chooses from, by the number of the job."""
    for port in range(FIRST_SLURM_PORT + int(time.time()) % 2000, 65536):
        with socket.socket() as candidate:
            if candidate.connect_ex(("localhost", port)):
                return port
    pytest.fail("no port is free")
