"""`make experiments`: list the recorded experiments, or repeat one and write its results."""

import argparse
from pathlib import Path

from minids.book.experiments import attention, growing, miniature, runner
from minids.book.recorded import load

EXPERIMENTS = {experiment.name: experiment for experiment in (miniature.EXPERIMENT, attention.EXPERIMENT)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minids.book.experiments", description=__doc__)
    parser.add_argument("name", nargs="?", help="the experiment; without one, list them")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the book's, which renew figures/data")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for runs, which are resumed, and results; default: runs/experiments/NAME",
    )
    parser.add_argument("--data", type=Path, help="text of your own instead of the book's corpus")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        if chosen.seeds or chosen.folder or chosen.data:
            parser.error("name the experiment that these options are for.")
        print(listing())
        return
    if chosen.name not in (names := [*EXPERIMENTS, growing.NAME]):
        parser.error(f"{chosen.name!r} is no experiment: there are {', '.join(names)}.")
    folder = chosen.folder or Path("runs") / "experiments" / chosen.name
    resumes = chosen.name != growing.NAME  # whose runs take seconds, and are not kept
    if chosen.data and not resumes:
        parser.error("the growing model has no --data: its stages are compared on the book's prose.")
    try:
        if resumes:
            print(f"runs are kept in {folder}; each writes its progress to its stderr.txt", flush=True)
            seeds = tuple(chosen.seeds or runner.SEEDS)
            _, path = runner.record(EXPERIMENTS[chosen.name], folder, seeds, chosen.data)
        else:
            path = growing.record(folder, tuple(chosen.seeds or growing.SEEDS))
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"minids: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"minids: stopped; the same command {'resumes' if resumes else 'begins again'}.\n")
    print(f"wrote {path}" + ("; `make figures book` draws it" if path.parent == runner.DATA else ""))


def listing() -> str:
    """Return the list of experiments, and how long each took when it was recorded."""
    lines = []
    arms = {name: (experiment.arms, runner.SEEDS) for name, experiment in EXPERIMENTS.items()}
    for name, (of, seeds) in (arms | {growing.NAME: (growing.STAGES, growing.SEEDS)}).items():
        there = (runner.DATA / f"{name}.json").exists()
        took = f"{load(name)['minutes']:,.0f} minutes of one core" if there else "not yet recorded"
        lines.append(f"{name:<12} {len(of) * len(seeds)} runs, {took}: {' · '.join(of)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
