"""The log of a run, log.jsonl: one JSON object per step, written by one process at a time.

While a run is trained its log is locked, so a second training in the same folder is refused. The system releases
the lock when the process ends, however it ends. Every checkpoint holds the digest of the lines before it, so a
resumed run can check that they are unchanged.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

BEGINNING = b'{"step": 0, '  # of the first line of every log


class Log:
    """The lines of one run. `with log:` opens the file, locks it, and closes it again.

    Opening raises ValueError, one sentence, if another training run has it, if it cannot be written, and for a link, a
    named pipe or a folder in its place.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[bytes] | None = None
        self._lines, self._size, self._digest = 0, 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of the lines so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> Log:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "ab+", buffering=0, opener=_without_following)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise ValueError(f"{self.path} cannot be written: {reason}.") from None
        try:
            self._lock(file)
        except ValueError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def _lock(self, file: IO[bytes]) -> None:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{self.path} is not a regular file: choose another folder (--out).")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path.parent} is in use by another training run: choose another (--out).") from None
        except OSError:
            pass  # a file system without locks

    def begin(self, steps: int) -> None:
        """Make sure that the file holds the lines of the first `steps` steps and no others.

        At the first step, lines of a run that died before its first checkpoint are dropped. Raises ValueError if the
        file is not of a run, or no longer holds what this run wrote.
        """
        content = self._read()
        if steps == 0:
            if not (content.startswith(BEGINNING) or BEGINNING.startswith(content)):
                raise ValueError(f"{self.path} is not the log of a run: choose another folder (--out).")
            self._file.truncate(0)
        elif steps != self._lines or hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{self.path} was changed meanwhile: resume the run from its checkpoint.")

    def resume(self, steps: int, sha256: str) -> list[dict]:
        """Return the records of the first `steps` lines, and drop those after them.

        Raises ValueError unless these lines have that digest.
        """
        lines = self._read().splitlines(keepends=True)[:steps]
        digest = hashlib.sha256(b"".join(lines))
        if digest.hexdigest() != sha256:
            raise ValueError(
                f"{self.path} does not hold the {steps} steps before the checkpoint: "
                "restore it, or choose another folder."
            )
        self._lines, self._size, self._digest = steps, sum(map(len, lines)), digest
        self._file.truncate(self._size)
        return [json.loads(line) for line in lines]

    def _read(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def append(self, record: dict) -> None:
        """Write one line, whole or not at all; OSError where the disk is full."""
        line = json.dumps(record).encode() + b"\n"
        try:
            rest = memoryview(line)
            while rest:  # a nearly full disk may accept only a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._lines += 1
        self._size += len(line)
        self._digest.update(line)

    def sync(self) -> None:
        """Flush all lines to the disk. Raises OSError if the log was removed or replaced.

        A checkpoint would then be saved without its log, or into another run's folder.
        """
        os.fsync(self._file.fileno())
        if not self.is_in_place():
            raise OSError(errno.ENOENT, "The log was removed or replaced during the run", str(self.path))

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


def _without_following(path: str, flags: int) -> int:
    """Open a file, but follow no link, which could lead to somebody else's file, and do not block on a named pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def read_log(path: Path) -> list[dict]:
    """Return the records in the log.jsonl of a run, a dict per step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
