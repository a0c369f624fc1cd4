# Everything from a fresh machine: Python 3.11+ and make are enough. `make help` lists the targets.

PYTHON ?= python3
TORCH ?= 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
GPU ?= $(shell command -v nvidia-smi 2>/dev/null)# set GPU=1 to get the CUDA build on a machine that shows none

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

NOTEBOOKS ?= notebooks/*.ipynb# which ones `make notebooks` and `make rendered` run

.PHONY: help setup demo test lint test-slow notebooks rendered test-browser wheel lab findings model clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready ## virtual environment with everything (other targets call it)

# torch first and alone: its builds differ by machine, everything else is told to keep the one chosen here.
.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed and '$(PYTHON)' is not. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) lacks its venv module. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(MAKE) --no-print-directory .torch
	@$(PIP) freeze | grep '^torch==' > .venv/constraints.txt
	$(PIP) install --quiet --constraint .venv/constraints.txt hatchling
	$(PIP) install --quiet --constraint .venv/constraints.txt --no-build-isolation --editable '.[dev,notebook]'
	@touch $@

# Without a GPU the CPU build saves gigabytes: as pip is configured, then PyTorch's own index, then the plain build where
# that brings no CUDA packages.
.PHONY: .torch
.torch:
	@if [ "$$(uname -s)" != Linux ] || [ -n "$(GPU)" ]; then \
	  $(PIP) install torch==$(TORCH); \
	elif $(PIP) install torch==$(TORCH)+cpu 2>/dev/null; then :; \
	elif $(PIP) install --timeout 15 --retries 1 --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH)+cpu; then :; \
	elif $(PIP) install --dry-run --quiet --report .venv/torch.json torch==$(TORCH) && ! grep -q '"nvidia' .venv/torch.json; then \
	  $(PIP) install torch==$(TORCH); \
	else \
	  echo "No CPU build of torch $(TORCH) found. Name an index that has one (make setup TORCH_CPU_INDEX=...), another" >&2; \
	  echo "version (TORCH=...), or accept the CUDA build of several gigabytes (make setup GPU=1)." >&2; exit 1; \
	fi

demo: setup ## record, find, prune and measure "castle" in the embedded model: a table and pictures in runs/demo/
	$(BIN)/probe demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread and one process for each core: tiny pipelines gain nothing from more threads.
test: lint ## lint, types, layers, then unit and property tests on tiny pipelines
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow' -n auto --maxprocesses 8 --dist worksteal

test-slow: setup ## bounds on the embedded model, kill tests, SD-shaped tests
	$(BIN)/python -m pytest -q -m slow --ignore=tests/test_wheel.py --ignore=tests/browser

notebooks: setup ## runs every notebook from top to bottom, with few pictures; the outputs go to runs/notebooks/
	@rm -rf runs/notebooks && mkdir -p runs/notebooks
	@set -e; for notebook in $(NOTEBOOKS); do \
	  echo "$$notebook"; $(BIN)/papermill --no-progress-bar -p quick True "$$notebook" "runs/$$notebook"; \
	done

rendered: notebooks ## the same, and keeps a page of each in docs/notebooks/ (NOTEBOOKS=notebooks/02*.ipynb: only of these)
	$(BIN)/python -m docs.render runs/notebooks docs/notebooks

test-browser: setup ## notebook 02 in JupyterLab and a headless Chromium; screenshots go to runs/browser/
	$(BIN)/python -m pytest -q tests/browser

wheel: setup ## builds dist/*.whl and tries it from an empty folder
	@rm -rf dist
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	WHEEL="$$(ls "$(CURDIR)"/dist/*.whl)" $(BIN)/python -m pytest -q -m slow tests/test_wheel.py

lab: setup ## JupyterLab on the notebooks; the repository is its root, so that links into docs/ lead somewhere
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" notebooks/01_explore_activations.ipynb

findings: setup ## makes committed maps, edits and attack sets that are missing: hours, says how long first, may be interrupted (ONLY=church)
	$(BIN)/python -m data.build.maps --only "$(ONLY)"
	$(BIN)/python -m data.build.edits --only "$(ONLY)"
	$(BIN)/python -m data.build.attacks --only "$(ONLY)"

model: setup ## retrains the embedded model: minutes on a GPU, hours on two cores; may be interrupted
	$(BIN)/python -m data.build.make

clean: ## removes what was built; keeps .venv and runs/
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find probe erase tests data notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
