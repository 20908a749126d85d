"""How a command ends: errors on one line of stderr, and exit codes.

2     a mistake in the input, reported by the message of its ValueError
1     an error of the system, such as a full disk, and a run that diverged
130   stopped by Ctrl-C
"""

import inspect
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from minids.validation import BadValueError

LONGEST_LINE = 600  # characters of an error message
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")  # torch's messages


@contextmanager
def told_in_one_sentence(command: Callable, **options: str) -> Iterator[None]:
    """Turn an error of the input (exit code 2) or of the system (1) into one line.

    A value is named as the command's option. `options` maps names in the library to options with another name.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: typer.echo(f"minids: {message}", err=True)
            yield
    except BadValueError as error:
        name = options.get(error.name, error.name)
        is_option = name in inspect.signature(command).parameters
        stop(f"--{name.replace('_', '-')} {error.sentence}" if is_option else str(error), 2)
    except ValueError as error:
        stop(str(error), 2)
    except BrokenPipeError:  # the reader of the pipe has ended, as in `minids count mini | head -1`
        raise
    except OSError as error:
        stop(f"{sentence_of(error)}.", 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        stop("there is not enough memory.", 1)


@contextmanager
def killed_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: an interrupted import leaves a half-loaded package and misleading errors."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)


def sentence_of(error: OSError) -> str:
    """Return what went wrong, and with which file if the error knows it."""
    what = error.strerror or str(error)
    return what if error.filename is None else f"{what}: {error.filename}"


def stop(sentence: str, code: int) -> NoReturn:
    """Print the sentence on one line of stderr and exit with the code.

    Of the processes that torchrun started, the first of each machine prints it, and the others what may be their own:
    code 1.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["LOCAL_RANK"] == "0" or code == 1:
        typer.echo(f"minids: {one_line(sentence)}", err=True)
    raise typer.Exit(code) from None


def one_line(sentence: str) -> str:
    """Return the sentence with line breaks, as in a name, escaped, and cut in the middle if it is long."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
