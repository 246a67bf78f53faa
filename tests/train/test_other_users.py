"""What another user of the machine can do to the server of a run: nothing. Tried as the user nobody, which needs root."""

from __future__ import annotations

import ipaddress
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aer_train.rollout import server_process
from aer_train.rollout.http import call
from aer_train.rollout.server_process import ServerProcess, private_folder, wait_until_healthy
from tests.train.test_vllm_process import serve

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def as_nobody(job: Callable[[], object]) -> str:
    """Return what `job` comes to in a child process of another user: "done", or the message of its error."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            job()
            outcome = "done"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(here, outcome.encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as answer:
        outcome = answer.read().decode()
    os.waitpid(child, 0)
    return outcome


def listening(pid: int) -> tuple[list[str], list[str]]:
    """Return on which addresses of TCP, and in which files of Unix sockets, a process and its descendants listen."""
    held = {link.removeprefix("socket:[").removesuffix("]") for process in _tree(pid) for link in _open_files(process)}
    tcp = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    addresses = [fields[1].partition(":")[0] for fields in tcp if fields[3] == "0A" and fields[9] in held]
    return [_address(text) for text in addresses], [fields[7] for fields in unix if fields[6] in held and fields[5] == "01"]


def _tree(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(process for child in children for process in _tree(child))]


def _open_files(pid: int) -> list[str]:
    return [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]


def _address(text: str) -> str:
    """From the form of /proc/net: words of 32 bits in the order of this machine."""
    words = [int(text[place : place + 8], 16).to_bytes(4, sys.byteorder) for place in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """One that answers at /health, started while new files are open to everybody."""
    before = os.umask(0)
    try:
        found = ServerProcess(serve(0, tmp_path / "pids"), dict(os.environ), tmp_path / "server.log")
        wait_until_healthy(found.url, 30.0, print, found)
    finally:
        os.umask(before)
    yield found
    found.close()


@as_root
def test_another_user_cannot_reach_the_server(server: ServerProcess) -> None:
    def health() -> None:
        call(f"{server.url}/health", post=False, timeout=5.0)

    health()
    file = server.folder / "http"
    assert file.is_socket() and file.stat().st_mode & 0o777 == 0o777, "it is the folder that keeps others out"
    assert as_nobody(health) == f"ConnectionError: {server.url}/health cannot be reached: [Errno 13] Permission denied"
    assert as_nobody(lambda: os.listdir(server.folder)).startswith("PermissionError")
    assert as_nobody(lambda: file.unlink()).startswith("PermissionError")
    assert as_nobody(lambda: server.folder.rename("/tmp/other")).startswith("PermissionError"), "nor put a folder of his own there"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_listens_on_its_socket_alone(server: ServerProcess) -> None:
    assert listening(server._process.pid) == ([], [str(server.folder / "http")])
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        four.bind(("127.0.0.1", 0))
        six.bind(("::", 0))
        four.listen()
        six.listen()
        assert {"127.0.0.1", "::"} <= set(listening(os.getpid())[0])


@as_root
def test_a_port_of_this_machine_is_open_to_everybody() -> None:
    """So the test above can fail, and a loop-back port is no protection."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert as_nobody(lambda: client.connect(listener.getsockname())) == "done"


def test_the_folder_of_a_server_is_private_whatever_the_umask() -> None:
    before = os.umask(0)
    try:
        folder = private_folder()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()
    folder.rmdir()


def test_temporary_files_of_a_server_are_in_its_folder(tmp_path: Path) -> None:
    """vLLM's own sockets among them, through which its processes exchange pickles."""
    command = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
    server = ServerProcess(lambda socket: command, dict(os.environ), tmp_path / "server.log")
    server._process.wait()
    assert server.log.read_text().strip() == str(server.folder)
    server.close()


def test_a_folder_whose_sockets_would_have_too_long_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(server_process.tempfile, "tempdir", str(long))
    with pytest.raises(ValueError, match=rf"TMPDIR must be a folder with a shorter name, for sockets \(as /tmp\), got {long}"):
        private_folder()
    assert not list(long.iterdir())
