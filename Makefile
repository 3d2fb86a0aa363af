# `make demo` and `make test` need nothing but Python 3.11 with pip: they set up .venv by themselves.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PEERS := .venv-peers

# One thread a process: ranks and Ray's workers share the cores, and sums come out the same each time.
export OMP_NUM_THREADS ?= 1

.PHONY: setup peers demo test test-slow lint format clean

setup: $(READY)

# torch comes first and alone, so that the build for this machine is taken and nothing else chooses one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 found; set it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)
	test -x $(BIN)/pip || $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $(READY)

# The loaders that benchmarks/loader.py compares ours with; torch first, so that none of them chooses a build.
peers: $(PEERS)/ready

$(PEERS)/ready: benchmarks/peers/requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 found; set it: make peers PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet torch==2.13.0
	$(PEERS)/bin/pip install --quiet --no-deps --requirement benchmarks/peers/requirements.txt
	@touch $(PEERS)/ready

demo: setup
	$(BIN)/python jobs/demo.py

test: setup
	$(BIN)/pytest -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow || test $$? -eq 5  # 5: there are none

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(PEERS) *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
