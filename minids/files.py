"""Writing a file, or a folder, so that it is there whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the name over when the block ends well.

    A crash leaves the old file or the new one, never a part. An exception leaves the old one.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # on the disk before it gets the name
        temporary.chmod(0o666 & ~_umask())  # mkstemp is private; a result is not
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` in one step, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, require_free: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which takes the name over when the block ends well.

    An exception leaves what was there. So does a crash, but for the moment between two renames in which
    an earlier folder has stepped aside as `.NAME.….old` and the new one has not yet taken its place.
    `require_free` raises if what is at `path` must not be replaced; it is asked at once and again just before
    the renames. What a crashed process left beside `path` goes once a later folder has the name.
    """
    require_free()
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.saving-{os.getpid()}-"))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            file.chmod(0o666 & ~_umask())  # safetensors' files are private, as mkdtemp's folder is
        temporary.chmod(0o777 & ~_umask())
        require_free()
        try:
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        finally:
            if path.exists():  # our folder, the old one, or that of another writer who was faster
                shutil.rmtree(old, ignore_errors=True)
            elif old.exists():
                old.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that are no more left beside `path`: half a folder, or one that had stepped aside."""
    name = re.compile(rf"\.{re.escape(path.name)}\.saving-(\d{{1,9}})-\w{{8}}(\.old)?")
    for leftover in path.parent.iterdir():
        match = name.fullmatch(leftover.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
