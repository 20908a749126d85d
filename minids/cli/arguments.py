"""The arguments of commands: settings, names of files, presets and runs, a prompt, and threads."""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from minids.model.config import ModelConfig
from minids.validation import quoted, require, require_whole

LONGEST_PROMPT = 100_000  # characters that are read from standard input


def with_options_of(defaults: object) -> Callable:
    """Let a command take every field of a dataclass as an option, with the help that its metadata holds.

    The command receives the options as keyword arguments, None if not given, and so need not list the fields. The help
    names the values in `defaults`, an instance.
    """

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        types = inspect.get_annotations(type(defaults), eval_str=True)
        options = []
        for field in dataclasses.fields(defaults):
            option = typer.Option(help=field.metadata["help"] + _shown(getattr(defaults, field.name)))
            hint = Annotated[types[field.name] | None, option]
            options.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
        command.__signature__ = signature.replace(parameters=[*own, *options])
        command.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        return command

    return decorate


def _shown(default: object) -> str:
    """Return the default as the help shows it; '' for a string, which the help text itself names."""
    numbers = default if isinstance(default, tuple) else (default,)
    return "" if isinstance(default, str | None) else f" Default: {' '.join(f'{n:g}' for n in numbers)}."


def path_of(name: str, given: str | None) -> Path | None:
    """Return an argument that names a file or folder; ValueError for an empty one, which Path reads as '.'."""
    require(name, given, given != "", "the name of a file or a folder")
    return None if given is None else Path(given)


def read_config(name: str) -> ModelConfig:
    """Return a preset by name, or else the configuration in the file or folder of that name."""
    if name in ModelConfig.preset_names():
        return ModelConfig.preset(name)
    if not name or not Path(name).exists():
        presets = ", ".join(ModelConfig.preset_names())
        raise ValueError(f"{quoted(name)} is neither a file nor a preset: the presets are {presets}.")
    return ModelConfig.from_hf(name)


def find_run(folder: Path) -> Path:
    """Return the folder of a run or of a saved model; `reference` names the one that comes with the book."""
    from minids.files import remove_leftovers
    from minids.training.checkpoint import SHARDED, find_checkpoint

    remove_leftovers(folder / SHARDED)  # puts one back that was about to be replaced
    if find_checkpoint(folder) or (folder / "config.json").exists():
        return folder
    if folder == Path("reference"):
        from minids.hub.reference import REFERENCE

        return REFERENCE
    raise ValueError(
        f"{folder} holds neither a run (checkpoint.safetensors, checkpoint) nor a saved model (config.json): "
        "`minids train` makes one, and `reference` names the one that comes with the book."
    )


def read_stdin() -> str:
    """Return a prompt from standard input; ValueError if it is too long."""
    text = sys.stdin.read(LONGEST_PROMPT + 1) if sys.stdin else ""
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"the prompt on standard input is too long: it may have {LONGEST_PROMPT:,} characters.")
    return text


def set_up(threads: int | None) -> None:
    """Apply the settings of the whole process, which a library should not change: threads and memory."""
    import torch

    from minids.device import keep_freed_memory

    if threads is not None:
        require_whole("threads", threads, at_most=os.cpu_count())
        torch.set_num_threads(threads)
    keep_freed_memory()
