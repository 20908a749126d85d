"""A disk in memory, on which a process can be killed, and which forgets what was not flushed if the power fails.

    disk = Disk({"run/model": b"old"}, dies_at=2)
    save(disk, "run/model", b"new")   # raises Died at the third moment
    disk.files                        # what the next process finds after a kill
    disk.flushed                      # what it finds after a power failure

Exercise 10.4 goes through all moments. Two simplifications: a new name is never lost, only content (real names need a
flush of their folder), and content that was not flushed is lost entirely, which is the worst that can happen.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping


class Died(BaseException):
    """The process is dead. No `except Exception` catches it, and nothing after it has an effect."""


class Disk:
    """Files by name, as "folder/file"; every folder is a file system of its own, as /tmp often is.

    The process dies at the moment `dies_at`, counted from 0: before an operation, or within a write. None: never.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, dies_at: int | None = None):
        self.files, self.flushed = dict(files or {}), dict(files or {})
        self.left, self.operations = dies_at, []

    def __repr__(self) -> str:
        return f"Disk({self.files})"

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        self._require(name)
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        """Create or empty the file, then write the content, as `open(name, "wb")` and `write` do."""
        self._begin("write", name)
        self.files[name] = self.flushed[name] = b""
        for end in (len(data) // 2, len(data)):
            self._moment()
            self.files[name] = data[:end]

    def fsync(self, name: str) -> None:
        """Return when the content of the file is really on the disk, as `os.fsync` does."""
        self._begin("fsync", name)
        self._require(name)
        self.flushed[name] = self.files[name]

    def replace(self, old: str, new: str) -> None:
        """Give a file another name, in one moment, and remove the file that had it, as `os.replace` does."""
        self._begin("replace", old, new)
        self._require(old)
        if old.partition("/")[0] != new.partition("/")[0]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), old)
        for files in (self.files, self.flushed):
            files[new] = files.pop(old)

    def remove(self, name: str) -> None:
        """Remove a file, as `os.remove` does."""
        self._begin("remove", name)
        self._require(name)
        del self.files[name], self.flushed[name]

    def _require(self, name: str) -> None:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _begin(self, *operation: str) -> None:
        if self.left is None or self.left >= 0:
            self.operations.append(operation)
        self._moment()

    def _moment(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Died(f"in operation {len(self.operations)}, {' '.join(self.operations[-1])}")
