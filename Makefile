# On a fresh machine, `make serve` starts a server (POST to http://127.0.0.1:8000), and `make test` runs the tests.
PYTHON ?= python3
# The configuration that `make serve` starts.
CONFIG ?= configs/flux2.yaml
# Test processes at a time.
JOBS ?= 2
BIN := .venv/bin
# With this variable Ray binds every port to loopback, on every platform; without it, to the primary interface.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER := 0
# Threads that spin at a barrier starve other processes on the same cores.
export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup serve test lint format benchmark clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

serve: setup
	$(BIN)/serve run $(CONFIG)

# Tests within one process run side by side, one thread each. Those of servers need the machine to themselves.
ALONGSIDE := tests/unit tests/parity tests/training

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ALONGSIDE)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(ALONGSIDE))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup
	$(BIN)/python -m benchmarks.request

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
