"""A Slurm of one machine, on the loopback, for as long as tests run."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import in_own_view
from forking import INTERPRETER, write_interpreter

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
PATIENCE = 60.0

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MaxArraySize={max_array_size}
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
NodeName=blind NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=DOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm that are not installed here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A cluster of one node.

    Args:
        folder: For its configuration, state and logs.
        max_array_size: Its limit.

    Attributes:
        environment: What processes need to talk to it.
        interpreter: A Python whose commands are forked; see :mod:`forking`.
    """

    def __init__(self, folder: Path, max_array_size: int) -> None:
        self.folder = folder
        self.interpreter = ""
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        }
        for name in ("munge", "state"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o700)
        key = folder / "munge/key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=socket.gethostname(), user=getpass.getuser(), folder=folder,
                ports=_free_ports(3), max_array_size=max_array_size,
            )
        )  # fmt: skip

    def start(self) -> None:
        """Starts all three, and waits until the node takes jobs."""
        munge = self.folder / "munge"
        self.call("munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
                  f"--pid-file={munge}/pid", f"--log-file={munge}/log",
                  f"--seed-file={munge}/seed")  # fmt: skip
        self.call("slurmctld")
        self.start_node()
        end = time.monotonic() + PATIENCE
        while "idle" not in self.call("sinfo", "-h", "-o", "%T", check=False):
            assert time.monotonic() < end, (self.folder / "slurmctld.log").read_text()
            time.sleep(0.1)

    def start_node(self) -> None:
        """Starts slurmd."""
        self.call("slurmd", "-N", socket.gethostname())

    def kill_node(self) -> None:
        """Kills slurmd, not the jobs that it watches."""
        pid = int((self.folder / f"slurmd-{socket.gethostname()}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        _wait_for_end(pid)

    @contextlib.contextmanager
    def blind_node(self, folder: Path) -> Iterator[str]:
        """A second node, on which an empty folder is in the place of a folder; yields its name."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        self.call(*in_own_view(f"mount --bind {empty} {folder}"), "slurmd", "-N", "blind")
        end = time.monotonic() + PATIENCE
        while "idle" not in self.call("sinfo", "-h", "-n", "blind", "-o", "%T", check=False):
            assert time.monotonic() < end, (self.folder / "slurmctld.log").read_text()
            time.sleep(0.1)
        try:
            yield "blind"
        finally:
            self.call("scontrol", "update", "NodeName=blind", "State=DOWN", "Reason=test",
                      check=False)  # fmt: skip
            self._end("slurmd-blind.pid")

    def call(self, *command: object, check: bool = True) -> str:
        """Runs a command and returns what it prints."""
        done = subprocess.run(
            [*map(str, command)], env=self.environment, capture_output=True, text=True,
            check=False, timeout=PATIENCE, cwd=self.folder,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def queue(self) -> list[str]:
        """The elements that are waiting or at work, as ``JOB_ELEMENT STATE``."""
        return self.call("squeue", "-h", "-r", "-o", "%i %T").splitlines()

    def wait(self) -> None:
        """Waits until there is nothing more to do."""
        end = time.monotonic() + 3 * PATIENCE
        while self.queue():
            assert time.monotonic() < end, self.queue()
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends all of it, jobs included."""
        self.call("scancel", "--user", getpass.getuser(), check=False)
        for name in (f"slurmd-{socket.gethostname()}.pid", "slurmctld.pid", "munge/pid"):
            self._end(name)

    def _end(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / name).read_text())
            os.kill(pid, signal.SIGTERM)
            _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    end = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@contextlib.contextmanager
def slurm_in(folder: Path, max_array_size: int) -> Iterator[Slurm]:
    """A Slurm that runs while it is entered."""
    slurm = Slurm(folder, max_array_size)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, request):
    """A Slurm of this machine; a module's ``MAX_ARRAY_SIZE`` is its limit.

    What its elements run is forked from processes that have torch loaded.
    """
    missing = missing_programs()
    if missing and os.environ.get("SKERCH_OOC_REQUIRE_SLURM"):
        pytest.fail(f"Slurm is required here, and there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"Slurm is not installed: there is no {', '.join(missing)}")
    commands = request.getfixturevalue("served_commands")
    # Its socket's path must be short.
    folder = Path(tmp_path_factory.mktemp("s"))
    with slurm_in(folder, getattr(request.module, "MAX_ARRAY_SIZE", 1001)) as started:
        started.interpreter = str(folder / "python")
        write_interpreter(folder / "python", commands)
        started.environment["PATH"] = f"{commands}:{started.environment['PATH']}"
        yield started


@pytest.fixture
def empty_queue(slurm):
    """The Slurm, with no jobs of an earlier test."""
    slurm.environment[INTERPRETER] = slurm.interpreter
    yield slurm
    slurm.call("scancel", "--user", str(os.getuid()), check=False)
    slurm.wait()
    slurm.environment.pop("SKERCH_OOC_TEST_LOG", None)


@pytest.fixture
def real_python(empty_queue):
    """Has the elements start new Pythons, as they do for everybody."""
    empty_queue.environment.pop(INTERPRETER)
