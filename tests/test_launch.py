"""The launch scripts without a cluster: what they would start, and when they start it again."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
ARGUMENTS = ("--config=configs/demo.py", "--workdir=runs/of me", "--config.name=a $b")
VARIABLES = {"TPU": "slice", "ZONE": "zone", "RESTARTS": "3"}


def launch(script, *arguments, variables={}, path=None):
    """The finished process; commands in the folder `path` stand for those of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    environment = kept | VARIABLES | {"MAMMOCLIP_VENV": str(path.parent) if path else "none"} | variables
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments], cwd=ROOT, env=environment, text=True, timeout=60, capture_output=True
    )


def commands(output):
    """The commands that --dry-run prints, each as (variables, words)."""
    found = []
    for line in output.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        if "python" in words or "gcloud" in words:
            start = next(i for i, word in enumerate(words) if "=" not in word)
            found.append((dict(word.split("=", 1) for word in words[:start]), words[start:]))
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_syntax_is_right(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(
            ["shellcheck", "--severity=warning", "--shell=bash", "--external-sources", str(path)], check=True
        )


def test_local_processes_meet_on_the_loopback_interface():
    run = launch("local.sh", "--dry-run", *ARGUMENTS, variables={"PROCESSES": "3", "DEVICES": "2", "PORT": "4321"})
    assert run.returncode == 0, run.stderr
    found = commands(run.stdout)
    assert [words[-1] for _, words in found] == ["--process=0", "--process=1", "--process=2"]
    for variables, words in found:
        assert variables["JAX_PLATFORMS"] == "cpu"
        assert words[:6] == ["python", "-m", "mammoclip_jax.pretrain", *ARGUMENTS]
        assert words[6:9] == ["--config.cpu_devices=2", "--coordinator=127.0.0.1:4321", "--processes=3"]


def test_a_gpu_node_has_one_process_or_one_a_gpu():
    ((variables, words),) = commands(launch("gpu_node.sh", "--dry-run", *ARGUMENTS).stdout)
    assert words == ["python", "-m", "mammoclip_jax.pretrain", *ARGUMENTS]
    assert variables["JAX_PLATFORMS"] == "cuda" and "latency_hiding" in variables["XLA_FLAGS"]
    found = commands(launch("gpu_node.sh", "--dry-run", *ARGUMENTS, variables={"PROCESSES": "2"}).stdout)
    assert [(variables["JAX_LOCAL_DEVICE_IDS"], words[-1]) for variables, words in found] == [
        ("0", "--process=0"),
        ("1", "--process=1"),
    ]


def test_slurm_starts_one_task_a_gpu_and_lets_jax_find_the_others():
    run = launch("slurm.sbatch", "--dry-run", *ARGUMENTS)
    ((_, words),) = commands(run.stdout)
    assert words[0] == "srun" and words[-3:] == list(ARGUMENTS)
    assert not any(word.startswith(("--coordinator", "--process")) for word in words)
    assert "#SBATCH --signal=TERM@120" in run.stdout and "#SBATCH --requeue" in run.stdout
    assert "at most 3 times: scontrol requeue" in run.stdout


def test_a_pod_runs_the_same_on_every_host():
    (variables, train), (_, gcloud) = commands(launch("tpu_pod.sh", "--dry-run", *ARGUMENTS).stdout)
    assert variables["JAX_NUM_PROCESSES"] == "auto" and train[-3:] == list(ARGUMENTS)
    assert gcloud[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone", "--worker=all"]
    assert shlex.split(gcloud[8].partition("--on-host")[2]) == list(ARGUMENTS)


def test_what_is_set_outside_stays():
    ((variables, _),) = commands(
        launch("gpu_node.sh", "--dry-run", *ARGUMENTS, variables={"XLA_FLAGS": "--mine"}).stdout
    )
    assert variables["XLA_FLAGS"] == "--mine"


@pytest.mark.parametrize("script", ["local.sh", "gpu_node.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_a_missing_workdir_is_said(script):
    run = launch(script, "--dry-run", "--config=configs/demo.py")
    assert run.returncode == 2 and "--workdir=DIR is missing" in run.stderr


# --- with stand-ins for python, srun, scontrol and gcloud ------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path):
    """Puts commands into a folder; each call of one adds a line to the file `calls` beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name, body):
        path = folder / name
        path.write_text(
            f'#!/usr/bin/env bash\necho "{name} $*" >> "{tmp_path}/calls"\n'
            f'calls=$(grep -c "^{name}" "{tmp_path}/calls")\n{body}\n'
        )
        path.chmod(0o755)
        return folder

    make.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return make


def test_a_stopped_run_is_started_again_until_it_is_done(stand_in, tmp_path):
    path = stand_in("python", "[ $calls -gt 2 ] || exit 75")
    run = launch("gpu_node.sh", f"--workdir={tmp_path}", path=path)
    assert run.returncode == 0 and len(stand_in.calls()) == 3 and "restart 2 of 3" in run.stderr


def test_restarts_are_bounded(stand_in, tmp_path):
    run = launch("gpu_node.sh", f"--workdir={tmp_path}", path=stand_in("python", "exit 75"))
    assert run.returncode == 75 and len(stand_in.calls()) == 4


def test_an_error_is_not_tried_again_and_ends_the_other_processes(stand_in, tmp_path):
    path = stand_in("python", 'case "$*" in *--process=1*) exit 2 ;; *) exec sleep 50 ;; esac')
    run = launch("local.sh", f"--workdir={tmp_path}", path=path)
    assert run.returncode == 2 and len(stand_in.calls()) == 2


def test_a_hung_run_is_started_again_whatever_its_other_processes_say(stand_in, tmp_path):
    path = stand_in("python", f'[ $calls -gt 1 ] || {{ sleep 0.1; touch "{tmp_path}/hung_step_3.txt"; exit 134; }}')
    assert launch("gpu_node.sh", f"--workdir={tmp_path}", path=path).returncode == 0
    assert len(stand_in.calls()) == 2


def test_a_signal_to_the_script_reaches_the_run_and_ends_it_for_good(stand_in, tmp_path):
    path = stand_in("python", "trap 'exit 75' TERM; touch \"" + str(tmp_path) + '/up"; while :; do sleep 0.1; done')
    environment = os.environ | {"MAMMOCLIP_VENV": str(path.parent)}
    process = subprocess.Popen(["bash", "launch/gpu_node.sh", f"--workdir={tmp_path}"], cwd=ROOT, env=environment)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75 and len(stand_in.calls()) == 1


def test_slurm_puts_a_stopped_job_back_into_the_queue(stand_in, tmp_path):
    stand_in("scontrol", "")
    path = stand_in("srun", "exit 75")
    variables = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_RESTART_COUNT": "2"}
    run = launch("slurm.sbatch", f"--workdir={tmp_path}", variables=variables, path=path)
    assert run.returncode == 75 and stand_in.calls()[-1] == "scontrol requeue 17"
    launch("slurm.sbatch", f"--workdir={tmp_path}", variables=variables | {"SLURM_RESTART_COUNT": "3"}, path=path)
    assert stand_in.calls()[-1].startswith("srun")


def test_the_hosts_of_a_pod_restart_by_themselves(stand_in, tmp_path):
    stand_in("python", "[ $calls -gt 1 ] || exit 75")
    path = stand_in("gcloud", 'for word; do case $word in --command=*) bash -c "${word#--command=}" ;; esac; done')
    run = launch(
        "tpu_pod.sh", f"--workdir={tmp_path}", "--config.name=a b", variables={"DIRECTORY": str(ROOT)}, path=path
    )
    assert run.returncode == 0, run.stderr
    gcloud, *pythons = stand_in.calls()
    assert pythons == [f"python -m mammoclip_jax.pretrain --workdir={tmp_path} --config.name=a b"] * 2
