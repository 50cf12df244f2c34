"""Another machine on this one: OpenSSH's server on the loopback, with keys, a port, a home and a Python of its own, while a test runs."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True)
class Host:
    """``folder``: where what goes there lies. ``bin``: what its shell finds. ``client``: the ``ssh`` that knows it, for PATH."""

    port: int
    folder: Path
    bin: Path
    client: Path
    server: int

    @property
    def address(self) -> str:
        return f"ssh://127.0.0.1:{self.port}{self.folder}"

    def running(self) -> list[str]:
        """Command lines of processes that this machine's folder or boot started and that still run."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
        parents = {int(line.split()[0]): int(line.split()[1]) for line in listed}
        return [line for line in listed if "sshd" not in line and self.server in _up(int(line.split()[0]), parents)]

    def cut(self) -> int:
        """Kill whatever serves a connection, as a cut cable would end it; how many there were."""
        listed = subprocess.run(["pgrep", "-P", str(self.server)], capture_output=True, text=True).stdout.split()
        for one in listed:
            subprocess.run(["kill", "-9", *_down(int(one)), one])
        return len(listed)


def _up(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process in parents:
        process = parents[process]
        yield process


def _down(process: int) -> list[str]:
    """The sshd processes below one; what they started is not touched."""
    listed = subprocess.run(["pgrep", "-P", str(process), "sshd"], capture_output=True, text=True).stdout.split()
    return [below for one in listed for below in [*_down(int(one)), one]]


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@contextmanager
def host(folder: Path) -> Iterator[Host]:
    """Skips by name where there is no server to start."""
    if SERVER is None or shutil.which("ssh-keygen") is None:
        pytest.skip("openssh-server is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up its rights
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "bin").mkdir()
    (folder / "client").mkdir()
    (folder / "home").mkdir()
    written(folder / "bin" / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n', 0o755)
    shutil.copy(folder / "user.pub", folder / "authorized")
    key = (folder / "host.pub").read_text()
    written(folder / "known", f"[127.0.0.1]:{port} {key}")
    told = f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "authorized"}
PidFile none
StrictModes no
UsePAM no
ForceCommand HOME={folder / "home"} PATH={folder / "bin"}:/usr/bin:/bin exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
    told = written(folder / "sshd.conf", told)
    client = f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nUserKnownHostsFile {folder / 'known'}\nGlobalKnownHostsFile none\n"
    client = written(folder / "ssh.conf", client)
    written(folder / "client" / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {client} "$@"\n', 0o755)
    log = (folder / "sshd.log").open("wb")
    with log, subprocess.Popen([SERVER, "-D", "-e", "-f", str(told)], stderr=log) as server:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            else:
                pytest.skip(f"sshd does not start here: {(folder / 'sshd.log').read_text().strip()}")
            yield Host(port=port, folder=folder / "there", bin=folder / "bin", client=folder / "client", server=server.pid)
        finally:
            server.terminate()
