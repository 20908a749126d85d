"""Writing a file, or a folder, so that it is there whole or not at all; and reading JSON that somebody else wrote.

What is new is written into a *workplace*, a hidden folder `.NAME.XXXXXXXX.tmp` beside NAME, and then renamed: within
one file system a rename happens completely or not at all. A process holds a lock on its workplace. The system releases
it when the process ends, however it ends, so a workplace without a lock is a leftover, and the next writer removes it.
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

LARGEST_JSON = 2**25  # bytes; the index of V3's weights has 9 million
NEW, EARLIER = "new", "earlier"  # in a workplace: what is written, and the folder that steps aside for it


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what was written there takes the name `path` over when the block ends well.

    A crash leaves the old file or the new one, never a part. An exception leaves the old one. Raises OSError where the
    system does: no such folder, no permission, a name too long.
    """
    with _workplace(path) as workplace:
        temporary = workplace / NEW
        yield temporary
        _publish(temporary)
        temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` in one step, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict:
    """Return the object in a JSON file. Raises ValueError, one sentence, if there is none, or too large a file."""
    try:
        if path.exists() and not path.is_file():  # to open a named pipe would wait for ever
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
    """Yield a temporary folder, which takes the name `path` over when the block ends well.

    `path` must then be absent or an empty folder (OSError otherwise), unless `overwrite` is set. In that case an
    earlier folder steps aside, and is removed once the new one has the name. An exception leaves what was there. So
    does a crash, but between the two renames the earlier folder has no name of its own: the next writer, or
    `remove_leftovers`, gives it back.
    """
    path = path.resolve()  # a link stays, and the folder that it leads to is replaced
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


def remove_leftovers(path: Path) -> None:
    """Remove what processes that died while they wrote `path` have left beside it; nothing else is touched.

    If one died between the two renames of `atomic_folder`, the earlier folder gets its name back first.
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
    """Yield a new folder beside `path` that holds this process's lock, and remove it at the end."""
    remove_leftovers(path)
    for last in (False, False, True):
        try:
            workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        except OSError as error:
            raise _of(path, error) from None
        with _lock(workplace) as is_ours:
            try:
                if is_ours or last:  # not ours: another process was just looking at it, or there are no locks here
                    yield workplace
                    return
            except OSError as error:
                if error.filename is None or str(error.filename).startswith(str(workplace)):
                    raise _of(path, error) from None
                raise
            finally:
                shutil.rmtree(workplace, ignore_errors=True)


def _of(path: Path, error: OSError) -> OSError:
    """Return the error with the name of the file that is to be written, and not that of the temporary one."""
    return OSError(error.errno, error.strerror or str(error), str(path))


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the lock on a folder. Yields False if another process has it, and where there is no folder or no lock."""
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
    """Bring a file to the disk before it gets its name, and let others read it: temporary files are private."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
