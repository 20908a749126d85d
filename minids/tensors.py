"""Reading and writing safetensors files, with sentences that say what is wrong with one.

The format holds tensors and a table of strings, no pickled code, so opening a file cannot run anything. But its library
has a single class of errors for a torn file, a full disk and a lack of permission, and waits for ever at a named pipe.
"""

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def open_tensors(path: Path, missing: str) -> safe_open:
    """Return an open safetensors file, for `with`. Raises ValueError for one that cannot be read.

    `missing` ends the sentence about a file that is not there.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a regular file: a safetensors file is needed there.")
        path.open("rb").close()
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {missing}.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; OSError, as for any other file, where the disk is full or the file not allowed."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        system = re.search(r"\(os error (\d+)\)", str(error))
        if system is None:
            raise
        raise OSError(int(system[1]), os.strerror(int(system[1])), str(path)) from None
