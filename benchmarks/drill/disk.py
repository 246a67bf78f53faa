"""A small disk to fill: a tmpfs in a mount namespace of its own, which needs no privileges where user namespaces are allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class SmallDisk:
    """A file system of a few MiB at `folder`, seen by the commands that `inside` wraps; everybody else sees it below `seen`.

    with SmallDisk(folder, mib=8) as disk:
        subprocess.run(disk.inside(["df", str(folder)]))
        disk.resize(100)
    """

    def __init__(self, folder: Path, mib: float) -> None:
        self.folder, self.mib = folder, mib

    @staticmethod
    def missing() -> str | None:
        """Why there can be no such disk here, or None."""
        try:
            done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else done.stderr.strip() or f"unshare ended with {done.returncode}"

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True)
        mount = f'mount -t tmpfs -o size={self._bytes(self.mib)} tmpfs "$0" && echo mounted && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", mount, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            raise OSError(f"a tmpfs must be mounted at {self.folder}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._holder.communicate()  # its input ends, and so does the namespace with the mount

    def inside(self, words: Sequence[str]) -> list[str]:
        """The command, run where the small disk is."""
        return ["nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials", f"--wd={Path.cwd()}", *words]

    @property
    def seen(self) -> Path:
        """The small disk from outside."""
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    def resize(self, mib: float) -> None:
        """Make room, or take it away."""
        option = f"remount,size={self._bytes(mib)}"
        subprocess.run(self.inside(["mount", "-o", option, str(self.folder)]), check=True, capture_output=True)

    @staticmethod
    def _bytes(mib: float) -> int:
        return int(mib * 2**20)
