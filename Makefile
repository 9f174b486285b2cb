# Every command of the project. `make demo` and `make test` are all that a new clone needs: both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Waiting OpenMP threads that spin make two busy cores several times slower.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: setup check test demo bench bench-training torture seedling docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

check: setup
	$(BIN)/ruff format --check src tools tests benchmarks
	$(BIN)/ruff check src tools tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# Two processes with one thread each: tests are small, and threads help them little.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

demo: setup
	$(BIN)/metier run recipes/quickstart.yaml

bench: setup bench-training
	$(BIN)/python -m benchmarks.main_job

# Training speed beside other tools: their environments (5 GB), then the rounds, on a quiet machine.
bench-training: setup
	$(BIN)/python -m benchmarks.peers.install
	$(BIN)/python -m benchmarks.training

# Every kind of fault, hundreds of each, and what survived: about an hour; then what checkpoints cost, on a quiet machine.
torture: setup
	$(BIN)/python -m benchmarks.torture
	$(BIN)/python -m benchmarks.torture cost

seedling: setup
	$(BIN)/python -m tools.seedling

# The pages of docs/ as a site in build/docs; needs no network and refers to nothing outside.
docs: setup
	$(BIN)/python -m tools.pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .metier runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
