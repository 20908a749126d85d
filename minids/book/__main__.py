"""`make lab` opens the chapters in JupyterLab, `make book` executes and stores them, `make minutes` times them."""

import argparse
import json
import os
import sys
from pathlib import Path

from minids.book.check import CHAPTERS

MINE = CHAPTERS.parent / "my"  # the reader's copies; git ignores them


def lab(options: list[str]) -> None:
    """Copy the chapters for the reader and replace this process by JupyterLab, which gets the `options`."""
    new = copy_chapters(CHAPTERS, MINE)
    print(f"Your copies are in {MINE.name}/." + (f" New: {', '.join(new)}." if new else ""), flush=True)
    os.execve(sys.executable, lab_command(options), os.environ | quiet(MINE / ".jupyter") | {"PYTHONHASHSEED": "0"})


def lab_command(options: list[str]) -> list[str]:
    """Return the command. It serves this machine only, from the repository's root, so that links to pictures work."""
    first = min(path.name for path in CHAPTERS.glob("*.ipynb"))
    return [
        sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--ServerApp.root_dir={MINE.parent}",
        f"--LabApp.default_url=/lab/tree/{MINE.name}/{first}", *options,
    ]  # fmt: skip


def quiet(folder: Path) -> dict[str, str]:
    """Return an environment in which JupyterLab does not look for news and updates in the network."""
    config = folder / "labconfig" / "page_config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    known = os.environ.get("JUPYTER_CONFIG_PATH")
    return {"JUPYTER_CONFIG_PATH": os.pathsep.join([str(folder), *([known] if known else [])])}


def copy_chapters(chapters: Path, mine: Path) -> list[str]:
    """Copy the notebooks that are not in `mine` yet, and return their names. Existing copies are not changed.

    The copies have no outputs, so that the reader predicts before seeing the answer.
    """
    new = []
    for path in sorted(chapters.rglob("*.ipynb")):
        name = path.relative_to(chapters)
        if ".ipynb_checkpoints" in name.parts or (mine / name).exists():
            continue
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        new.append(name.as_posix())
    return new


def build(paths: list[Path], fresh: bool) -> int:
    """Execute and store the notebooks; print which changed, and complaints. Return 1 if there are any."""
    from minids.book.build import build as build_one  # imported here because `lab` does not need it
    from minids.book.lint import complaints

    wrong = 0
    for path in paths or sorted(CHAPTERS.rglob("*.ipynb")):
        if not path.is_file():
            sys.exit(f"There is no notebook {path}.")
        changed = build_one(path, fresh)
        print(f"{path.name}: {'changed' if changed else 'unchanged'}", flush=True)
        for complaint in complaints(path):
            wrong = 1
            print(f"  {complaint}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m minids.book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lab", help="open JupyterLab on your own copies")
    timing = commands.add_parser("minutes", help="measure how long the chapters run")
    timing.add_argument("paths", nargs="*", type=Path, help="these notebooks only")
    building = commands.add_parser("build", help="execute and store the chapters")
    building.add_argument("paths", nargs="*", type=Path, help="these notebooks only")
    building.add_argument("--fresh", action="store_true", help="redraw measured pictures, too")
    arguments, rest = parser.parse_known_args()
    if arguments.command == "lab":
        lab(rest)
    if rest:
        parser.error(f"unknown options: {' '.join(rest)}")
    if arguments.command == "minutes":
        from minids.book.minutes import measure

        sys.exit(measure(arguments.paths))
    sys.exit(build(arguments.paths, arguments.fresh))
