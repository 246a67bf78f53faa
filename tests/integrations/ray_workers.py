"""Ray's workers as forks of one process that has imported the libraries: a run of verl has nine workers, and they import for most of their time.

    python ray_workers.py serve SOCKET MODULES...          # imports them, and forks from then on
    python -S ray_workers.py run SOCKET SCRIPT ARGS...     # stands for `python SCRIPT ARGS...`: `py_executable` of Ray's runtime environment

ray itself must not be among the modules: its connections do not work after a fork.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys

STREAMS = (0, 1, 2)


def run(path: str, command: list[str]) -> None:
    """Let the server run a command with this process's environment, folder and streams, and end with it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"."], STREAMS)
        server.sendall(json.dumps([command, dict(os.environ), os.getcwd()]).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)  # nothing is sent: the other end is closed when the command has ended


def serve(path: str, modules: list[str]) -> None:
    """Import the modules, and fork for each command. Returns in the fork, when the command has ended."""
    for name in modules:
        __import__(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"modules must not start threads, which a fork loses: got {modules}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("listening", flush=True)
        while True:
            client = listener.accept()[0]
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    become(client)


def become(client: socket.socket) -> None:
    """Run the client's command, as if python had been started for it."""
    _, streams, _, _ = socket.recv_fds(client, 1, len(STREAMS))
    for theirs, own in zip(streams, STREAMS, strict=True):
        os.dup2(theirs, own)
        os.close(theirs)
    with client.makefile() as lines:
        command, environment, folder = json.loads(lines.read())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    sys.path[:1] = [os.path.dirname(command[0]), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    (serve if sys.argv[1] == "serve" else run)(sys.argv[2], sys.argv[3:])
