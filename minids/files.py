"""Atomic writes of files and folders, and safe reading of JSON files from other programs.

New content is written to a *workplace*, a hidden folder `.NAME.XXXXXXXX.tmp` beside NAME, and then renamed; within one
file system a rename is atomic. A process holds a lock on its workplace. The system releases the lock when the process
ends, for whatever reason, so a workplace without a lock is a leftover, and the next writer removes it.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LARGEST_JSON = 2**25  # bytes; the index of V3's weights is 9 MB
NEW, EARLIER = "new", "earlier"  # in a workplace: the new content, and the old folder that it replaces


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file written there is renamed to `path` when the block ends without an exception.

    After a crash, `path` is the complete old file or the complete new one; after an exception, the old one. Raises
    OSError if the system does: the folder does not exist, permission is missing, the name is too long.
    """
    with _workplace(path) as workplace:
        temporary = workplace / NEW
        yield temporary
        _publish(temporary)
        temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict:
    """Return the object in a JSON file. Raises ValueError if it is missing, too large or not an object."""
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would block
            raise ValueError("it is not a regular file")
        if path.stat().st_size > largest:
            raise ValueError(f"it has more than {largest:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: it must be one JSON object.")
    return content


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `path` when the block ends without an exception.

    `path` must then be absent or an empty folder (OSError otherwise), unless `overwrite` is set: then the old folder is
    moved into the workplace, and removed after the new one is renamed. After an exception the old folder is in place.
    After a crash, too, unless it fell between the two renames: then the next writer, or `remove_leftovers`, moves the
    old folder back from the workplace.
    """
    path = path.resolve()  # a symbolic link stays: its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path) as workplace:
        temporary, earlier = workplace / NEW, workplace / EARLIER
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _publish(file)
        try:
            if overwrite and path.exists():
                path.rename(earlier)
            temporary.rename(path)
        except BaseException:
            if earlier.exists() and not path.exists():
                earlier.rename(path)
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder, if there is one. Whenever the process dies, the folder is whole or gone."""
    if path.exists():
        workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        path.rename(workplace / "removed")
        shutil.rmtree(workplace, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the workplaces that processes left beside `path` when they died while writing it, and nothing else.

    If one died between the two renames of `atomic_folder`, the old folder is first moved back to `path`.
    """
    workplaces = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    with suppress(OSError):
        for workplace in [entry for entry in path.parent.iterdir() if workplaces.fullmatch(entry.name)]:
            with _lock(workplace) as is_ours:
                if is_ours:
                    if (workplace / EARLIER).exists() and not path.exists():
                        (workplace / EARLIER).rename(path)
                    shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that this process has locked, and remove it at the end."""
    remove_leftovers(path)
    for last in (False, False, True):
        try:
            workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        except OSError as error:
            raise _of(path, error) from None
        with _lock(workplace) as is_ours:
            try:
                if is_ours or last:  # no lock: another process was checking it, or locks are not supported
                    yield workplace
                    return
            except OSError as error:
                if error.filename is None or str(error.filename).startswith(str(workplace)):
                    raise _of(path, error) from None
                raise
            finally:
                shutil.rmtree(workplace, ignore_errors=True)


def _of(path: Path, error: OSError) -> OSError:
    """Return the error with the name of the file to be written instead of the temporary one's."""
    return OSError(error.errno, error.strerror or str(error), str(path))


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder. Yields False if another process holds the lock, or the folder or support for locks is missing."""
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = folder.exists()
    except OSError:
        is_ours = False
    try:
        yield is_ours
    finally:
        if handle is not None:
            os.close(handle)


def _publish(file: Path) -> None:
    """Flush a file to disk before it is renamed, and give it normal permissions: temporary files are private."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
