# Each target makes its own environment first. Options for pip (an index, a constraint file) go in
# PIP_ARGS; options for the command itself in ARGS: make train ARGS="--steps 2000 --out runs/long"

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
# Of `make experiments`. Not from the environment, where WSL has a NAME, too.
NAME :=
SEEDS :=
BIN := .venv/bin
# Threads spin only briefly while they wait: else a run collapses when another program wants a core.
TRAIN_ENV := GOMP_SPINCOUNT=10000
# One thread and a fixed hash seed: tests run side by side, and their digits must not depend on it. Three at a time,
# because some only wait, for a browser or another process; notebooks two at a time.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false

.PHONY: train test notebooks lab book bench experiments figures reference clean

train: .venv/train.stamp
	$(TRAIN_ENV) $(BIN)/minids train --resume $(ARGS)

test: .venv/test.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(TEST_ENV) $(BIN)/python -m pytest -n 3 --dist loadgroup $(ARGS)
	$(MAKE) notebooks

# Every cell again, its output compared with the stored one; pictures by their text.
notebooks: .venv/test.stamp
	$(TEST_ENV) $(BIN)/python -m pytest --nbval chapters --nbval-sanitize-with tests/nbval.cfg \
		--nbval-cell-timeout 120 -n 2 --dist loadscope -p no:cacheprovider

lab: .venv/book.stamp
	$(BIN)/python -m minids.book lab $(ARGS)

book: .venv/book.stamp
	$(BIN)/python -m minids.book build $(ARGS)

bench: .venv/test.stamp
	$(TRAIN_ENV) $(BIN)/python -m minids.book.bench $(ARGS)

# Without NAME: what there is. NAME=attention SEEDS="0 1" takes those seeds; its folder keeps what is done.
experiments: .venv/train.stamp
	$(TRAIN_ENV) $(BIN)/python -m minids.book.experiments $(NAME) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

figures: .venv/book.stamp
	$(BIN)/python figures/draw.py

reference: .venv/train.stamp
	$(TRAIN_ENV) $(BIN)/python -m minids.book.experiments.reference $(ARGS)

clean:
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'minids needs Python 3.11 or newer; this is ' + sys.version.split()[0])"
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/train.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e .
	touch $@

.venv/book.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[book]"
	touch $@ .venv/train.stamp

.venv/test.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[test]"
	touch $@ .venv/book.stamp .venv/train.stamp
