# `make demo` and `make test` need nothing but Python 3.11 with pip: they set up .venv by themselves.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PEERS := .venv-peers
BENCHMARKS := startup plan reader jpeg loader tokenize train_step checkpoint

# One thread a process: ranks and Ray's workers share the cores, and sums come out the same each time.
export OMP_NUM_THREADS ?= 1

.PHONY: setup peers demo curves proof results chaos kills bench test test-slow test-long lint format clean

setup: $(READY)

# torch comes first and alone, so that the build for this machine is taken and nothing else chooses one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 found; set it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)
	test -x $(BIN)/pip || $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $(READY)
	@echo "ready: . .venv/bin/activate"

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

# Whether the stages of the demo learn as they did: docs/results.md.
curves: demo
	for stage in stage1 stage2 stage3; do \
		$(BIN)/janus runs follows runs/demo/$$stage jobs/recipes/tiny/curves/$$stage.json || exit 1; \
	done

# Three and a half hours on two cores. Settings in ARGS: make proof ARGS="cluster.gpu=true cluster.workers=1"
proof: setup
	$(BIN)/python jobs/proof.py $(ARGS)

# docs/results.md of what the proof found so far.
results: setup
	$(BIN)/python -m janus_dist.report.results runs/proof/summary.json docs jobs/recipes/proof/notes.yaml

# More than half an hour; make chaos ARGS="--faults 10 --kills 0" does each kind of fault once.
chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)

# A pipeline killed 20 times on a disk and 20 times in S3: driver, encoder, job, node. A quarter of an hour.
kills: setup
	JANUS_KILLS=20 $(BIN)/pytest -s tests/pipelines/test_killed.py

# All that fits two cores with nothing else on them, 35 minutes; a line each in runs/bench.jsonl (docs/benchmarks.md). One
# that fails leaves its log, the others go on, and make fails at the end.
bench: setup peers
	mkdir -p runs
	failed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; options=--json; test $$name != checkpoint || options="--json --world 2"; \
		if $(BIN)/python benchmarks/$$name.py $$options > runs/bench-$$name.out 2> runs/bench-$$name.log; then \
			tail -n 1 runs/bench-$$name.out | tee -a runs/bench.jsonl; \
		else \
			echo "$$name failed: runs/bench-$$name.log" >&2; failed="$$failed $$name"; \
		fi; \
	done; test -z "$$failed"

# Two at a time, each with the files of its own: what a file's tests share is made once.
test: setup
	$(BIN)/pytest -m "not slow and not long" -n 2 --dist loadfile

test-slow: setup
	$(BIN)/pytest -m "slow and not long" --durations=20

# What does not fit into every change's time: all of it, or the folders of what was changed, make test-long AREA="jobs resume".
# CONTRIBUTING.md says who runs which.
test-long: setup
	$(BIN)/pytest -m long --durations=20 $(addprefix tests/,$(AREA))

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
