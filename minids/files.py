"""Writing a file, or a folder, so that it is there whole or not at all.

What is new is written under a temporary name in the same folder, and then renamed: within one file system a rename
happens completely or not at all.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
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
        _publish(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` in one step, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which takes the name over when the block ends well.

    `path` must then be absent or an empty folder (OSError otherwise), unless `overwrite` is set. In that case an
    earlier folder steps aside, and is removed once the new one has the name. An exception leaves what was there. So
    does a crash, but between the two renames the earlier folder is called `.NAME.….old`.
    """
    path = path.resolve()  # a link stays, and the folder that it leads to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        for file in temporary.iterdir():
            _publish(file)
        temporary.chmod(0o777 & ~_umask())
        if overwrite and path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _publish(file: Path) -> None:
    """Bring a file to the disk before it gets its name, and let others read it: temporary files are private."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
