"""The scripts that start Dask clusters by hand, as far as one machine can run them.

Remote shells, ``srun`` and GPUs are stood in for; schedulers, workers and commands are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
from contents import answer, run_contents
from distributed import Client
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "cluster/dask"
PAGE = (SCRIPTS / "README.md").read_text()
SMALL = {"sketch": {"test_measurements": 12, "block": 8}}
SLOW = {"operator": {"args": {"delay": 0.2}}, **SMALL}
PATIENCE = 60.0

# As ssh does: the words after the host are one line for a shell there.
REMOTE_SHELL = """#!/bin/sh
host=$1
shift
[ "$host" != unreachable ] || exit 255
HOST_OF_TEST=$host exec sh -c "$*"
"""
SRUN = """#!/usr/bin/env bash
for word; do
    case $word in
        --ntasks=*) tasks=${word#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
[[ ${SRUN_FAILS-} ]] && exit 1
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task "$@" &
done
trap 'kill $(jobs -p)' TERM
wait
"""
NVIDIA_SMI = """#!/bin/sh
echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)'
echo '  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)'
echo '  MIG 3g.20gb     Device  1: (UUID: MIG-cccc)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd)'
"""
# Three hosts with addresses of their own, without any right on this one: the first runs a command.
NETWORK = """#!/usr/bin/env bash
set -eu
mount -t tmpfs none /run
ip link set lo up
ip link add eth0 type bridge
ip address add 10.77.0.1/24 dev eth0
ip link set eth0 up
for number in 1 2; do
    ip netns add host$number
    ip link add to-host$number type veth peer name eth0 netns host$number
    ip link set to-host$number master eth0 up
    ip -n host$number address add 10.77.0.1$number/24 dev eth0
    ip -n host$number link set eth0 up
    ip -n host$number link set lo up
done
exec "$@"
"""
REMOTE_SHELL_OF_NETWORK = """#!/bin/sh
host=$1
shift
exec nsenter --net=/run/netns/$host sh -c "$*"
"""
RUN_ON_NETWORK = """
bash {ssh} scheduler.json host1 host2 &
cluster=$!
trap 'kill $cluster; wait $cluster || [[ $? == 143 ]]' EXIT
until [[ -s scheduler.json ]]; do sleep 0.1; done
skerch-ooc run spec.toml --run run --executor dask --scheduler scheduler.json --threads 1 &
until [[ $(ls run/shards/*.h5 2>/dev/null | wc -l) -ge 2 ]]; do
    kill -0 $!
    sleep 0.1
done
{meanwhile}
wait $!
"""


def write_command(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def processes_of(marker: str) -> dict[int, str]:
    """Command lines of all processes that were started with a value in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "environ").read_bytes():
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if words and int(folder.name) != os.getpid():
                    found[int(folder.name)] = words.decode()
    return found


def until(condition, what: str):
    """Waits for a condition, and returns what it returned."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return value


class Scripts:
    """Starts scripts in a folder, with the commands of this Python first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"SCRIPTS_OF_TEST={folder}"
        commands = folder / "bin"
        commands.mkdir()
        for name, module in (("dask", "dask"), ("skerch-ooc", "skerch_ooc")):
            line = f'#!/bin/sh\nexec {sys.executable} -W ignore -m {module} "$@"\n'
            write_command(commands, name, line)
        write_command(commands, "srun", SRUN)
        self.commands = commands
        self.environment = {
            name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"
        } | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SCRIPTS_OF_TEST": str(folder),
            "SSH": str(write_command(commands, "remote-shell", REMOTE_SHELL)),
            "INTERFACE": "lo",
            "SCRATCH": str(folder),
        }  # fmt: skip
        self.started: list[subprocess.Popen] = []

    def start(self, name: str, *arguments: object, **environment: object) -> subprocess.Popen:
        """Starts a script; what it says goes to the file ``said``."""
        with (self.folder / "said").open("a") as said:
            process = subprocess.Popen(
                ["bash", str(SCRIPTS / name), *map(str, arguments)],
                cwd=self.folder,
                env=self.environment | {k: str(v) for k, v in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def __call__(self, name: str, *arguments: object, **environment: object) -> int:
        """Runs a script; the exit code."""
        return self.start(name, *arguments, **environment).wait(PATIENCE)

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def survivors(self) -> dict[int, str]:
        return processes_of(self.marker)

    def end(self) -> None:
        for process in self.started:
            process.terminate()
            process.wait(PATIENCE)
        try:
            until(lambda: not self.survivors(), f"{self.survivors()}, {self.said}")
        finally:
            for pid in self.survivors():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def scripts(tmp_path):
    """Runs scripts; no process of theirs outlives the test."""
    started = Scripts(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A run in one process."""
    folder = tmp_path_factory.mktemp("serial")
    return whole_run(write_spec(folder, "matrix", 40, **SMALL), folder / "run")


def asked_of_workers(file: Path, workers: int, *names: str) -> list[tuple[str | None, ...]]:
    """What variables of the environment are in each worker, when all are there."""
    with Client(scheduler_file=str(file), set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=PATIENCE)
        found = [client.run(os.getenv, name) for name in names]
        return sorted(tuple(values[worker] for values in found) for worker in found[0])


# ssh.sh


@pytest.mark.thorough
def test_workers_started_by_ssh_make_the_same_files(scripts, tmp_path, serial, capsys):
    file = tmp_path / "the scheduler's file.json"
    process = scripts.start("ssh.sh", file.name, "one", "two", WORKERS=1, CORES=2)
    until(file.exists, scripts.said)
    found = asked_of_workers(file, 2, "HOST_OF_TEST", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert found == [("one", "2", "2"), ("two", "2", "2")]
    spec = write_spec(tmp_path, "matrix", 40, **SMALL)
    run = whole_run(spec, tmp_path / "run", ooc.Dask(file))
    assert run_contents(run) == run_contents(serial)
    check = re.search(r"```python\n(from distributed.*?)```", PAGE, re.S)[1]
    exec(check.replace("/shared/scheduler.json", str(file)), {})
    assert capsys.readouterr().out.count(ooc.__version__) == 2
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not scripts.survivors()
    assert not file.exists()


@pytest.mark.soak
def test_cluster_by_ssh_ends_at_ctrl_c(scripts, tmp_path):
    file = tmp_path / "scheduler.json"
    process = scripts.start("ssh.sh", file, "one", WORKERS=2)
    until(file.exists, scripts.said)
    assert asked_of_workers(file, 2, "HOST_OF_TEST") == [("one",)] * 2
    # To the whole group, as a terminal does.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
    assert not scripts.survivors()
    assert not file.exists()


@pytest.mark.soak
def test_all_ends_when_the_scheduler_by_ssh_is_killed(scripts, tmp_path, ooc_command):
    file = tmp_path / "scheduler.json"
    process = scripts.start("ssh.sh", file, "one", WORKERS=1)
    until(file.exists, scripts.said)
    spec = write_spec(tmp_path, "matrix", 40, **SLOW)
    command = ooc_command.start("run", spec, "--run", "run", "--executor", "dask",
                                "--scheduler", file)  # fmt: skip
    until(lambda: list(tmp_path.glob("run/shards/*.h5")), scripts.said)
    scheduler = next(pid for pid, line in scripts.survivors().items() if "dask scheduler" in line)
    os.kill(scheduler, signal.SIGKILL)
    assert process.wait(PATIENCE) == 2
    assert "the scheduler has ended" in scripts.said
    _, error = command.communicate(timeout=PATIENCE)
    assert (command.returncode, "the same command goes on" in error) == (4, True)
    assert not scripts.survivors()
    assert not file.exists()


def test_host_that_is_out_of_reach_is_named(scripts, tmp_path):
    assert scripts("ssh.sh", "scheduler.json", "unreachable") == 2
    assert "the workers of unreachable have ended (exit code 255)" in scripts.said
    assert "no host has workers any more" in scripts.said


@pytest.mark.soak
@pytest.mark.parametrize(
    "meanwhile", ["", "ip link set to-host1 down"], ids=["all stay", "one is cut off"]
)
def test_hosts_with_addresses_of_their_own_make_the_same_files(
    scripts, tmp_path, serial, meanwhile
):
    network = write_command(scripts.commands, "network", NETWORK)
    inside = ["unshare", "--map-root-user", "--net", "--mount", str(network)]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("this machine does not let its users make networks")
    write_spec(tmp_path, "matrix", 40, **SLOW)
    script = write_command(
        scripts.commands, "script",
        RUN_ON_NETWORK.format(ssh=SCRIPTS / "ssh.sh", meanwhile=meanwhile),
    )  # fmt: skip
    shell = write_command(scripts.commands, "remote-shell", REMOTE_SHELL_OF_NETWORK)
    with (tmp_path / "said").open("a") as said:
        done = subprocess.run(
            [*inside, "bash", "-eu", str(script)],
            cwd=tmp_path,
            env=scripts.environment
            | {"SSH": str(shell), "INTERFACE": "eth0", "WORKERS": "1"}
            # How long silence is taken for work.
            | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"},
            stdout=said,
            stderr=said,
            check=False,
            timeout=100,
        )
    assert done.returncode == 0, scripts.said
    hosts = set(re.findall(r"Register worker addr: tcp://([0-9.]+)", scripts.said))
    assert hosts == {"10.77.0.11", "10.77.0.12"}
    assert answer(tmp_path / "run") == answer(serial)
    assert not scripts.survivors()


# slurm.sbatch


JOB = {"SLURM_JOB_ID": 17, "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1}


@pytest.mark.soak
def test_job_that_is_told_of_its_time_limit_stops_in_good_order_and_the_next_goes_on(
    scripts, tmp_path, serial
):
    spec = write_spec(tmp_path, "matrix", 40, **SLOW)
    job = scripts.start("slurm.sbatch", spec, "deep/run", **JOB)
    run = tmp_path / "deep/run"
    until(lambda: list(run.glob("shards/*.h5")), scripts.said)
    # As `--signal=B:USR1` has it: to the script alone.
    job.send_signal(signal.SIGUSR1)
    assert job.wait(PATIENCE) == 0
    assert "stopped in good order" in scripts.said
    assert not scripts.survivors()
    done = len(list(run.glob("shards/*.h5")))
    assert 0 < done < len(list(serial.glob("shards/*.h5")))
    # The rest is measured, and the exit code is that of the command.
    gate = ("--max-relative-error", "1e-9")
    assert scripts("slurm.sbatch", spec, "deep/run", *gate, **JOB | {"SLURM_NTASKS": 1}) == 3
    assert not scripts.survivors()
    assert answer(run) == answer(serial)
    # Nor is a scheduler file left.
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_job_whose_workers_fail_ends(scripts, tmp_path):
    spec = write_spec(tmp_path, "matrix", 40, **SMALL)
    assert scripts("slurm.sbatch", spec, "run", SRUN_FAILS=1, **JOB) == 2
    assert "the workers or the scheduler ended before the command" in scripts.said
    assert not scripts.survivors()


# gpus.sh


@pytest.mark.thorough
def test_each_gpu_has_a_worker_of_its_own(scripts, tmp_path):
    file = tmp_path / "scheduler.json"
    process = scripts.start("gpus.sh", file, CUDA_VISIBLE_DEVICES="3,5", CORES=1)
    until(file.exists, scripts.said)
    assert asked_of_workers(file, 2, "CUDA_VISIBLE_DEVICES") == [("3",), ("5",)]
    joined = scripts.start("gpus.sh", file, "7", JOIN=1)
    assert asked_of_workers(file, 3, "CUDA_VISIBLE_DEVICES") == [("3",), ("5",), ("7",)]
    joined.terminate()
    assert joined.wait(PATIENCE) == 128 + signal.SIGTERM
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not scripts.survivors()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("named", "gpus"),
    [({}, ["GPU-dddd", "MIG-bbbb", "MIG-cccc"]), ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", "5"])],
    ids=["by the driver", "by the environment"],
)
def test_gpus_are_found(scripts, tmp_path, named, gpus):
    """The workers are stood in for: that real ones see their GPU takes longer."""
    write_command(scripts.commands, "nvidia-smi", NVIDIA_SMI)
    write_command(
        scripts.commands, "dask",
        '#!/bin/sh\necho "$1 on ${CUDA_VISIBLE_DEVICES-none}"\necho {} >scheduler.json\nsleep 1\n',
    )  # fmt: skip
    assert scripts("gpus.sh", "scheduler.json", **named) == 2
    found = re.findall(r"^(\w+) on (\S+)$", scripts.said, re.M)
    workers = sorted(gpu for who, gpu in found if who == "worker")
    assert workers == gpus
    assert [who for who, _ in found].count("scheduler") == 1
    assert named or ("scheduler", "none") in found


# The page


@pytest.mark.parametrize("name", ["ssh.sh", "slurm.sbatch", "gpus.sh"])
def test_page_names_each_script(name):
    assert f"| `{name} " in PAGE


@pytest.mark.parametrize("key", sorted(set(re.findall(r"DASK_(DISTRIBUTED__[A-Z_]+)", PAGE))))
def test_setting_of_the_page_is_one_of_dask(key):
    path = key.lower().replace("__", ".").replace("_", "-")
    assert dask.config.get(path, "none") != "none"


# Mistakes


@pytest.mark.parametrize(
    ("name", "arguments", "environment", "text"),
    [
        ("ssh.sh", ["file"], {}, "bash ssh.sh FILE HOST"),
        ("ssh.sh", ["nowhere/file", "one"], {}, "there is no folder nowhere"),
        ("ssh.sh", ["said", "one"], {}, "said is there"),
        ("ssh.sh", ["file", "one"], {"CORES": "many"}, "CORES=many"),
        ("ssh.sh", ["file", "one"], {"WORKERS": "0"}, "WORKERS=0"),
        ("ssh.sh", ["file", "one"], {"PATH": "/usr/bin:/bin"}, "no command dask"),
        ("ssh.sh", ["file", "one"], {"INTERFACE": "none"}, "the scheduler ended at once"),
        ("slurm.sbatch", ["spec.toml"], {}, "sbatch slurm.sbatch SPEC DIR"),
        ("slurm.sbatch", ["spec.toml", "run"], {}, "this is no Slurm job"),
        ("slurm.sbatch", ["spec.toml", "run"], JOB | {"PATH": "/usr/bin:/bin"}, "no command dask"),
        ("slurm.sbatch", ["s", "run"], JOB | {"INTERFACE": "none"}, "the scheduler ended at once"),
        ("gpus.sh", [], {}, "bash gpus.sh FILE"),
        ("gpus.sh", ["nowhere/file", "0"], {}, "there is no folder nowhere"),
        ("gpus.sh", ["said", "0"], {}, "said is there"),
        ("gpus.sh", ["file", "0"], {"JOIN": "1"}, "no scheduler file file to join"),
        ("gpus.sh", ["file", "0"], {"CORES": "many"}, "CORES=many"),
        ("gpus.sh", ["file", "0"], {"PATH": "/usr/bin:/bin"}, "no command dask"),
        ("gpus.sh", ["file", "0"], {"INTERFACE": "none"}, "the scheduler ended at once"),
        ("gpus.sh", ["file"], {"PATH": "{bin}:/usr/bin:/bin"}, "no GPU"),
    ],
)
def test_mistake_is_named_with_what_to_do(scripts, name, arguments, environment, text):
    if "{bin}" in environment.get("PATH", ""):
        write_command(scripts.commands, "nvidia-smi", "#!/bin/sh\nexit 9\n")
        environment = environment | {"PATH": environment["PATH"].format(bin=scripts.commands)}
    assert scripts(name, *arguments, **environment) == 2
    assert text in scripts.said


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Dask's configuration of a cluster that talks TLS only, as the page has it."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    make = re.search(r"```bash\n(openssl .*?)```", PAGE, re.S)[1]
    subprocess.run(["bash", "-euc", make], cwd=folder, check=True, capture_output=True)
    settings = re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1].replace("/shared/tls", str(folder))
    (folder / "tls.yaml").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, certificates):
    """The address of a cluster that talks TLS only."""
    scripts = Scripts(tmp_path_factory.mktemp("encrypted"))
    file = scripts.folder / "scheduler.json"
    scripts.start("ssh.sh", file, "one", WORKERS=1, DASK_CONFIG=certificates)
    until(lambda: "Registered to" in scripts.said, scripts.said)
    yield json.loads(file.read_text())["address"]
    scripts.end()


@pytest.mark.thorough
def test_run_over_tls_makes_the_same_files(tmp_path, certificates, encrypted, serial):
    assert encrypted.startswith("tls://")
    spec = write_spec(tmp_path, "matrix", 40, **SMALL)
    (settings,) = dask.config.collect_yaml([str(certificates)])
    tls = settings["distributed"]["comm"]["tls"]
    with dask.config.set({f"distributed.comm.tls.{key}": value for key, value in tls.items()}):
        run = whole_run(spec, tmp_path / "run", ooc.Dask(encrypted))
    assert run_contents(run) == run_contents(serial)


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_client_without_certificates_is_refused(tmp_path, monkeypatch, encrypted, scheme):
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 0.3)
    spec = write_spec(tmp_path, "matrix", 40, **SMALL)
    address = encrypted.replace("tls", scheme)
    with pytest.raises(ooc.UsageError, match=re.escape(address)):
        whole_run(spec, tmp_path / "run", ooc.Dask(address))
