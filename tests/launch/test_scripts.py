"""The shell scripts: shellcheck, what each prints as a dry run, and what runs on a machine."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "launch").rglob("*.sh"))
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
)
TRAIN = ("python", "launch/train.py", "--config.data.cameras=('a b',)")
TRAIN_QUOTED = r"""python launch/train.py '--config.data.cameras=('\''a b'\'',)'"""
POD = ("--name=pod", "--zone=us-east5-a")
QUEUED = "gcloud compute tpus queued-resources"
CLUSTER = ("--cluster=pods", "--zone=us-east5-a")
CLONE = "[ -d defi-jax ] || git clone --quiet https://host/a.git defi-jax"

# (script and its arguments, the commands that it would run)
DRY_RUNS = [
    (
        ("tpu/pod.sh", "create", *POD, "--type=v5p-128"),
        f"{QUEUED} create pod --zone=us-east5-a --accelerator-type=v5p-128"
        " --runtime-version=v2-alpha-tpuv5 --node-id=pod"
        " --scopes=https://www.googleapis.com/auth/cloud-platform",
    ),
    (
        (
            *("tpu/pod.sh", "create", *POD, "--type=v5litepod-64", "--num_slices=2"),
            *("--capacity=spot", "--project=mine", "--service_account=me@mine"),
        ),
        f"{QUEUED} create pod --zone=us-east5-a --project=mine --accelerator-type=v5litepod-64"
        " --runtime-version=v2-alpha-tpuv5-lite --node-count=2 --node-prefix=pod --spot"
        " --service-account=me@mine --scopes=https://www.googleapis.com/auth/cloud-platform",
    ),
    (
        ("tpu/pod.sh", "setup", *POD, "--repository=https://host/a.git", "--commit=12ab"),
        f"{QUEUED} ssh pod --zone=us-east5-a --node=all --worker=all '--command=set -e;"
        " sudo apt-get -qq update; sudo apt-get -qq install -y"
        f" git make python3-pip python3-venv libosmesa6 libgl1\n{CLONE}\n"
        r"defi-jax/launch/worker.sh setup 12ab "
        r"'\''requirements-tpu.txt requirements-gcs.txt'\'''",
    ),
    (
        ("tpu/pod.sh", "run", *POD, "--logs=gs://b/logs", "--", "python", "launch/train.py"),
        f"{QUEUED} ssh pod --zone=us-east5-a --node=all --worker=all"
        " '--command=defi-jax/launch/worker.sh start gs://b/logs python launch/train.py'",
    ),
    (
        ("tpu/pod.sh", "each", *POD, "--", "mkdir", "data"),
        f"{QUEUED} ssh pod --zone=us-east5-a --node=all --worker=all"
        " '--command=cd defi-jax && mkdir data'",
    ),
    (
        ("tpu/pod.sh", "watch", *POD, "--worker=3"),
        f"{QUEUED} describe pod --zone=us-east5-a '--format=value(state.state)'\n"
        f"{QUEUED} ssh pod --zone=us-east5-a --node=0 --worker=3"
        " '--command=tail -n 40 -F defi-jax/run.log'",
    ),
    (
        ("tpu/pod.sh", "stop", *POD),
        f"{QUEUED} ssh pod --zone=us-east5-a --node=0 --worker=0"
        " '--command=defi-jax/launch/worker.sh stop'",
    ),
    (
        ("tpu/pod.sh", "delete", *POD),
        f"{QUEUED} delete pod --zone=us-east5-a --force",
    ),
    (
        ("tpu/xpk.sh", "create", *CLUSTER, "--type=v5p-128", "--capacity=reservation=ours"),
        "xpk cluster create --cluster=pods --zone=us-east5-a --tpu-type=v5p-128 --num-slices=1"
        " --reservation=ours",
    ),
    (
        ("tpu/xpk.sh", "build", "--image=host/defi-jax:1"),
        "docker build --build-arg ACCELERATOR=tpu --tag host/defi-jax:1 .\n"
        "docker push host/defi-jax:1",
    ),
    (
        (
            *("tpu/xpk.sh", "run", *CLUSTER, "--name=gfdm-1", "--type=v5litepod-256"),
            *("--num_slices=2", "--image=host/defi-jax:1", "--", "python", "launch/train.py"),
        ),
        "xpk workload create --cluster=pods --zone=us-east5-a --workload=gfdm-1"
        " --tpu-type=v5litepod-256 --num-slices=2 --docker-image=host/defi-jax:1"
        " --max-restarts=20 --termination-grace-period-seconds=300"
        " '--command=python launch/train.py'",
    ),
    (
        ("tpu/xpk.sh", "watch", *CLUSTER, "--name=gfdm-1"),
        "xpk workload list --cluster=pods --zone=us-east5-a --filter-by-job=gfdm-1\n"
        "kubectl logs --follow --prefix --tail=40 --max-log-requests=100"
        " --selector=jobset.sigs.k8s.io/jobset-name=gfdm-1",
    ),
    (
        ("tpu/xpk.sh", "stop", *CLUSTER, "--name=gfdm-1", "--project=mine"),
        "xpk workload delete --cluster=pods --zone=us-east5-a --project=mine --workload=gfdm-1",
    ),
    (
        ("tpu/xpk.sh", "delete", *CLUSTER),
        "xpk cluster delete --cluster=pods --zone=us-east5-a",
    ),
    (
        ("gpu/ssh.sh", "setup", "--hosts=a", "--repository=https://host/a.git", "--commit=12ab"),
        f"ssh a 'set -e\n{CLONE}\n"
        r"defi-jax/launch/worker.sh setup 12ab "
        r"'\''requirements-gpu.txt requirements-gcs.txt'\'''",
    ),
    (
        ("gpu/ssh.sh", "run", "--hosts=a,b", "--", "python", "launch/train.py"),
        "ssh a JAX_COORDINATOR_ADDRESS=a:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0"
        r" 'defi-jax/launch/worker.sh start '\'''\'' python launch/train.py'"
        "\nssh b JAX_COORDINATOR_ADDRESS=a:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1"
        r" 'defi-jax/launch/worker.sh start '\'''\'' python launch/train.py'",
    ),
    (
        ("gpu/ssh.sh", "watch", "--hosts=a,b", "--host=b"),
        "ssh b 'tail -n 40 -F defi-jax/run.log'",
    ),
    (("gpu/ssh.sh", "stop", "--hosts=a,b"), "ssh a 'defi-jax/launch/worker.sh stop'"),
]


def script(name, *arguments, directory=ROOT, **options):
    command = ["bash", str(directory / "launch" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, **options)


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    files = [*map(str, SCRIPTS), ".ci/run"]
    done = subprocess.run([SHELLCHECK, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("arguments", "commands"), DRY_RUNS, ids=lambda case: "-".join(case[:2]))
def test_a_dry_run_prints_the_commands(arguments, commands):
    name, action, *flags = arguments
    done = script(name, action, "--dry_run", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{commands}\n"


def test_every_action_has_a_dry_run():
    shown = {arguments[:2] for arguments, _ in DRY_RUNS}
    for name in ("tpu/pod.sh", "tpu/xpk.sh", "gpu/ssh.sh"):
        given = script(name).stderr.partition("give ")[2].replace(" or ", ", ").strip()
        assert {(name, action) for action in given.split(", ")} == {
            s for s in shown if s[0] == name
        }


def test_words_stay_words_on_the_way_to_the_machines():
    """A shell reads from the printed command what the remote shell is to read."""
    printed = script("tpu/pod.sh", "run", *POD, "--dry_run", "--", *TRAIN).stdout
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {printed}"], capture_output=True, text=True
    ).stdout.splitlines()
    assert words[-1] == f"--command=defi-jax/launch/worker.sh start '' {TRAIN_QUOTED}"


def test_slurm_gives_each_node_its_place_and_all_its_gpus():
    printed = script("gpu/slurm.sh", "--dry_run", *TRAIN).stdout
    assert printed.startswith("srun --label --kill-on-bad-exit=0 bash -c '\n")
    assert printed.endswith(f"\n' node {TRAIN_QUOTED}\n")
    node = printed[printed.index("'") + 1 : printed.rindex("\n' node")]
    # Slurm and the virtual environment are not at hand: what they would say.
    before = ". () { :; }; scontrol () { printf 'n1\\nn2\\n'; }\n"
    show = ["bash", "-c", before + node, "node", "env"]
    env = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "123456",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_GPUS_ON_NODE": "4",
    }
    lines = subprocess.run(show, env=env, capture_output=True, text=True).stdout.splitlines()
    assert {line for line in lines if line.startswith("JAX_")} == {
        "JAX_COORDINATOR_ADDRESS=n1:23456",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tpu/pod.sh", "crate"), "unknown action 'crate'"),
        (("tpu/pod.sh", "watch", "--zone=z"), "a flag is missing: --name"),
        (("tpu/pod.sh", "create", *POD), "a flag is missing: --type"),
        (("tpu/pod.sh", "create", *POD, "--type=v9-8"), "no runtime version known"),
        (("tpu/pod.sh", "create", "--nme=1"), "unknown flag --nme"),
        (("tpu/pod.sh", "run", *POD, "python"), "unknown argument python"),
        (("tpu/xpk.sh", "run", *CLUSTER, "--name=a", "--type=b", "--image=c"), "no command to run"),
        (("gpu/ssh.sh", "run"), "a flag is missing: --hosts"),
        (("gpu/slurm.sh",), "no command to run"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, words):
    done = script(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_machine_runs_one_command_until_it_is_stopped(tmp_path):
    (tmp_path / "launch").mkdir()
    for name in ("worker.sh", "common.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("export ACTIVE=yes\n")

    def worker(*arguments):
        return script("worker.sh", *arguments, directory=tmp_path, timeout=20)

    def wait_for(words):
        for _ in range(200):
            time.sleep(0.05)
            if words in (tmp_path / "run.log").read_text():
                return
        raise AssertionError((tmp_path / "run.log").read_text())

    assert worker("stop").returncode == 2
    code = 'trap "exit 75" TERM; echo "$ACTIVE, $1"; while :; do sleep 0.05; done'
    assert worker("start", "", "bash", "-c", code, "-", "a  b").returncode == 0
    wait_for("yes, a  b")
    second = worker("start", "", "true")
    assert second.returncode == 2 and "a command runs here already" in second.stderr
    assert worker("stop").returncode == 0
    wait_for("ended with 75")
