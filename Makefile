# Everything runs in .venv, which is made on first use and refreshed when pyproject.toml changes.
#   make quickstart        train and evaluate the built-in example (no network, no accounts, CPU)
#   make quickstart-proof  the same from random weights: shows that the method needs pretraining
#   make test              ruff, mypy, pytest         make test-slow         real data and fresh processes
#   make lint              ruff alone                 make fix               ruff, with its fixes
#   make bench             speed and memory ratios    make bench-check       a minute of it, against the stored ratios
#   make docs              regenerate docs/recipes.md

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= runs/quickstart

QUICKSTART_TRAIN    ?= $(BIN)/sve train quickstart --out $(OUT) --overwrite
PROOF_TRAIN         ?= $(BIN)/sve train quickstart model.random_init=true --out $(OUT)-proof --overwrite
BENCH               ?= $(BIN)/python -m benchmarks.speed --short
PYTEST_ARGS         ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-proof test test-slow lint fix bench bench-check docs clean

help:
	@sed -n '2,7s/^# *//p' Makefile

quickstart: $(STAMP)
	$(QUICKSTART_TRAIN)

quickstart-proof: quickstart
	$(PROOF_TRAIN)
	$(BIN)/python benchmarks/quickstart_proof.py $(OUT) $(OUT)-proof

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

# Real data, fresh processes, wheel: skipped where SVE_DATA_DIR and SVE_TEST_MODELS are not set.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow -rs $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BENCH)

# Ends with 3 where a ratio is above 1.6 times the stored one plus 0.1.
bench-check: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --check benchmarks/results/speed.json

docs: $(STAMP)
	$(BIN)/python -c "from pathlib import Path; from sve_cli.recipe.schema import recipes_reference as text; Path('docs/recipes.md').write_text(text(), encoding='utf-8')"

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find sve_cli tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sve needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
