# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= runs
SEEDS ?= 1,2,3,4,5
JOBS ?= 2
KILLS ?= 50
SEED ?=
# More options of the speed benchmark, as in: make bench BENCH='--models demo --only judge'
BENCH ?=
# No network while running, no telemetry; one thread a test worker, because two workers share two cores.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-slow check bench bench-scaling chaos seeds pretrain clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/selfreward demo --run-dir $(RUNS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/dedupe.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/speed $(BENCH)

bench-scaling: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python bench/speed --scaling

chaos: $(READY)
	$(BIN)/python bench/chaos --kills $(KILLS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

seeds: $(READY)
	$(BIN)/selfreward lab seeds --seeds $(SEEDS) --out $(RUNS)/seeds --jobs $(JOBS)

pretrain: $(READY)
	$(BIN)/selfreward lab pretrain --out src/selfreward/lab/m0

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
