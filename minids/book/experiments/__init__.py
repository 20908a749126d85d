"""Recorded experiments, one file each: several seeds, minutes to hours, results in figures/data/NAME.json."""
