"""Training: the loop, exact resume, evaluation and the report at the end."""
