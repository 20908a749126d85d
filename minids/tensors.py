"""Reading and writing safetensors files, with clear error messages.

A safetensors file holds tensors and a table of strings, no pickled code, so opening one cannot run code. But
the library raises the same error class for a damaged file, a full disk and missing permission, and blocks on a named
pipe. The functions here distinguish these causes.
"""

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def open_tensors(path: Path, missing: str) -> safe_open:
    """Return an open safetensors file, a context manager. Raises ValueError if it cannot be read.

    `missing` is the end of the message for a file that does not exist.
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
    """Write a safetensors file. Raises OSError, as for other files, if the disk is full or permission is missing."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        system = re.search(r"\(os error (\d+)\)", str(error))
        if system is None:
            raise
        raise OSError(int(system[1]), os.strerror(int(system[1])), str(path)) from None
