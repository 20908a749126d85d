# Each target makes its own environment first. Options for pip (an index, a constraint file) go in
# PIP_ARGS; options for the command itself in ARGS: make train ARGS="--steps 2000 --out runs/long"

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
# For `make experiments`. Not taken from the environment, where WSL has a NAME, too.
NAME :=
SEEDS :=
BIN := .venv/bin
# One thread and a fixed hash seed, because tests run in parallel and their digits must not depend on either. Three tests
# at a time, because some only wait for a browser or another process; notebooks two at a time.
THREADS := 1
TEST_ENV = OMP_NUM_THREADS=$(THREADS) PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false
# Compute as an x86 processor with fewer instructions would: torch's own kernels, MKL and oneDNN each have a switch.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
NO_AVX512 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2

.PHONY: train test notebooks portable margins lab book minutes bench experiments figures reference clean

train: .venv/train.stamp
	$(BIN)/minids train --resume $(ARGS)

test: .venv/test.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(TEST_ENV) $(BIN)/python -m pytest -n 3 --dist loadgroup $(ARGS)
	$(MAKE) notebooks

# Runs every cell again and compares its output with the stored one; pictures by their text.
notebooks: .venv/test.stamp
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m pytest --nbval chapters --nbval-sanitize-with tests/nbval.cfg \
		--nbval-cell-timeout 600 -n 2 --dist loadscope -p no:cacheprovider -p nbval_kernels

# The same three times more: printed digits must be the same on other processors, which round differently.
portable: .venv/test.stamp
	$(OLD_PROCESSOR) $(MAKE) notebooks
	$(NO_AVX512) $(MAKE) notebooks
	$(MAKE) notebooks THREADS=2

# Checks what chapters assert about live training, with ten seeds, as on three processors.
margins: .venv/book.stamp
	$(TEST_ENV) $(BIN)/python -m minids.book.margins $(ARGS)
	$(TEST_ENV) $(NO_AVX512) $(BIN)/python -m minids.book.margins $(ARGS)
	$(TEST_ENV) $(OLD_PROCESSOR) $(BIN)/python -m minids.book.margins $(ARGS)

lab: .venv/book.stamp
	$(BIN)/python -m minids.book lab $(ARGS)

book: .venv/book.stamp
	$(BIN)/python -m minids.book build $(ARGS)

# How long each chapter runs, for the table in chapter 0, which is built again afterwards.
minutes: .venv/book.stamp
	$(BIN)/python -m minids.book minutes $(ARGS)
	$(MAKE) book ARGS=chapters/00_how_to_use_this_book.ipynb

bench: .venv/test.stamp
	$(BIN)/python -m minids.book.bench $(ARGS)

# Without NAME, lists the experiments. NAME=attention SEEDS="0 1" runs those seeds, NAME=ablation ARGS="--arms GQA" one
# of its rows; finished runs are kept in its folder.
experiments: .venv/train.stamp
	$(BIN)/python -m minids.book.experiments $(NAME) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

figures: .venv/book.stamp
	$(BIN)/python figures/draw.py

reference: .venv/train.stamp
	$(BIN)/python -m minids.book.experiments.reference $(ARGS)

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
