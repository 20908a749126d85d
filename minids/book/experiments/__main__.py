"""`make experiments`: list the recorded experiments, or repeat one and write its results."""

import argparse
from pathlib import Path

from minids.book.experiments import (
    ablation,
    attention,
    balance,
    experts,
    fp8,
    growing,
    miniature,
    mtp,
    pool,
    runner,
    scaling,
)
from minids.book.recorded import DATA, load

EXPERIMENTS = {experiment.name: experiment for experiment in (miniature.EXPERIMENT, attention.EXPERIMENT)}
POOLED = {
    experiment.name: experiment
    for experiment in (
        growing.EXPERIMENT,
        experts.EXPERIMENT,
        balance.EXPERIMENT,
        mtp.EXPERIMENT,
        fp8.EXPERIMENT,
        ablation.EXPERIMENT,
        scaling.EXPERIMENT,
    )
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minids.book.experiments", description=__doc__)
    parser.add_argument("name", nargs="?", help="the experiment; without one, list them")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the book's, which renew figures/data")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for runs, which are resumed, and results; default: runs/experiments/NAME",
    )
    parser.add_argument("--arms", nargs="+", help="only these, by name; the results go to the folder")
    parser.add_argument("--data", type=Path, help="text of your own instead of the book's corpus")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        if chosen.seeds or chosen.folder or chosen.data or chosen.arms:
            parser.error("name the experiment that these options are for.")
        print(listing())
        return
    if chosen.name not in EXPERIMENTS | POOLED:
        parser.error(f"{chosen.name!r} is no experiment: there are {', '.join(EXPERIMENTS | POOLED)}.")
    if chosen.data and chosen.name in POOLED:
        parser.error(f"{chosen.name} has no --data: its arms are compared on the book's text.")
    if chosen.arms and chosen.name in EXPERIMENTS:
        parser.error(f"{chosen.name} has no --arms: the tables of its report need all of them.")
    folder = chosen.folder or Path("runs") / "experiments" / chosen.name
    print(f"runs are kept in {folder}", flush=True)
    try:
        if chosen.name in POOLED:
            seeds = tuple(chosen.seeds) if chosen.seeds else None
            path = pool.record(POOLED[chosen.name], folder, seeds, chosen.arms)
        else:
            seeds = tuple(chosen.seeds or runner.SEEDS)
            _, path = runner.record(EXPERIMENTS[chosen.name], folder, seeds, chosen.data)
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"minids: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "minids: stopped; the same command resumes.\n")
    print(f"wrote {path}" + ("; `make figures book` draws it" if path.parent == DATA else ""))


def listing() -> str:
    """Return the list of experiments, and how long each took when it was recorded."""
    lines = []
    counts = {name: len(experiment.arms) * len(runner.SEEDS) for name, experiment in EXPERIMENTS.items()}
    counts |= {name: len(pool.jobs(experiment)) for name, experiment in POOLED.items()}
    for name, experiment in (EXPERIMENTS | POOLED).items():
        there = (DATA / f"{name}.json").exists()
        took = f"{load(name)['minutes']:,.0f} minutes of one core" if there else "not yet recorded"
        lines.append(f"{name:<12} {counts[name]} runs, {took}: {' · '.join(experiment.arms)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
