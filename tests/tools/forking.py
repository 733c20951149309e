"""A ``skerch-ooc`` that need not import torch first: each command is forked from a server that has.

The command that a shell starts hands its arguments, folder, environment and open files to the
server, passes signals on, and ends as the forked process does. If it is killed, so is that. There
are two servers, as verbs that do without torch also promise to do without its memory.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from killing import arm

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STARTING = 120.0
INTERPRETER = "SKERCH_OOC_TEST_PYTHON"
"""Which Python a command takes for its own; see :func:`write_interpreter`."""
WITH_TORCH = ("plan", "probe", "run", "measure", "extend", "update", "task")

# Without site packages it starts in a hundredth of a second.
CLIENT = f"""#!{sys.executable} -SE
import array, json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
kind = "torch" if sys.argv[1:2] and sys.argv[1] in {WITH_TORCH} else "plain"
server.connect({{folder!r}} + "/" + kind)
numbers = {[int(number) for number in PASSED_ON]}
ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), ignored]).encode()
descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([len(request).to_bytes(8, "big")], descriptors)
server.sendall(request)
reader = server.makefile()
pid = int(reader.readline())
for number in numbers:
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(reader.readline())
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Path]:
    """A folder with a command ``skerch-ooc``, as long as it is entered."""
    commands = folder / "bin"
    commands.mkdir()
    command = commands / "skerch-ooc"
    command.write_text(CLIENT.format(folder=str(folder)))
    command.chmod(0o755)
    addresses = [folder / kind for kind in ("plain", "torch")]
    servers = [subprocess.Popen([sys.executable, __file__, address]) for address in addresses]
    try:
        end = time.monotonic() + STARTING
        while not all(address.exists() for address in addresses):
            assert all(server.poll() is None for server in servers), "a server ended"
            assert time.monotonic() < end, "a server does not start"
            time.sleep(0.01)
        yield commands
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def write_interpreter(path: Path, commands: Path) -> None:
    """Writes a Python whose ``-P -m skerch_ooc`` is a served command; what else it runs is real."""
    path.write_text(
        '#!/bin/sh\nif [ "$1 $2 $3" = "-P -m skerch_ooc" ]; then\n    shift 3\n'
        f'    exec "{commands}/skerch-ooc" "$@"\nfi\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)


def _serve(address: str) -> None:
    for name in ("cli.main", "pipeline.run", "pipeline.grow", "cli.tables",
                 *(["results.lowrank"] if address.endswith("torch") else [])):  # fmt: skip
        importlib.import_module(f"skerch_ooc.{name}")
    assert ("torch" in sys.modules) == address.endswith("torch")
    # As by the fixture ``no_late_files``.
    importlib.import_module("skerch_ooc.base.patience").LATE_FILES_SECONDS = (0.0,)
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    running: dict[socket.socket, int] = {}
    while True:
        ready, _, _ = select.select([listener, *running], [], [], 0.005 if running else None)
        for connection in ready:
            if connection is listener:
                accepted, _ = listener.accept()
                running[accepted] = _started(accepted)
            else:
                # It sends no more words: it is gone.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running[connection], signal.SIGKILL)
                os.waitpid(running.pop(connection), 0)
                connection.close()
        for connection, pid in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()
                del running[connection]


def _started(connection: socket.socket) -> int:
    """Forks the process of a command; returns its number."""
    room = socket.CMSG_LEN(3 * array.array("i").itemsize)
    length, ancillary, _, _ = connection.recvmsg(8, room)
    descriptors = array.array("i", ancillary[0][2])
    content = connection.makefile("rb").read(int.from_bytes(length, "big"))
    pid = os.fork()
    if pid == 0:
        _be_command(json.loads(content), list(descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    return pid


def _be_command(request: list, descriptors: list[int]) -> None:
    """What the forked process does; never returns."""
    arguments, folder, environment, ignored = request
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 256)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    sys.argv[:] = ["skerch-ooc", *arguments]
    sys.executable = environment.get(INTERPRETER, sys.executable)
    arm()
    from skerch_ooc.__main__ import main

    main()


if __name__ == "__main__":
    _serve(sys.argv[1])
