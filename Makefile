# Everything a person runs. Needs Python 3.11 to 3.13, make and a package index.

PYTHON ?= python3
GATEHOUSE_STORE ?= store
export GATEHOUSE_STORE

BIN := .venv/bin
RUNTIME := .venv/runtime.installed
DEVELOPMENT := .venv/development.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help serve demo test check soak bench overload format lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

serve: $(RUNTIME)  ## serve the store on 127.0.0.1:8000; trains a demo model if the store is empty
	@test -n "$(wildcard $(GATEHOUSE_STORE)/*/*/model.json)" || $(MAKE) --no-print-directory demo
	@exec $(BIN)/gatehouse serve

demo: $(RUNTIME)  ## train the demo model and publish it into the store
	$(BIN)/python -m models train --config models/configs/demo.toml --store "$(GATEHOUSE_STORE)"

test: $(DEVELOPMENT)  ## run the whole test suite; fails below 95 % of branches covered
	$(BIN)/python -m pytest --cov

check: $(DEVELOPMENT)  ## lint, formatting, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(DEVELOPMENT)  ## 100 000 mixed requests to a real server, every answer checked; minutes
	$(BIN)/python -m tests.soak

bench: $(DEVELOPMENT)  ## rates and latencies by size, form and load, beside the limit; needs wrk
	$(BIN)/python -m tests.bench.percentiles

overload: $(DEVELOPMENT)  ## goodput and p99 at up to 10 times the capacity; draws tests/bench/overload.svg
	$(BIN)/python -m tests.bench.overload --out tests/bench/overload.svg

format: $(DEVELOPMENT)  ## format the code
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

# Torch is locked without its local tag (+cpu, +cu130), and what only its CUDA builds need is left
# out: its own metadata pins those exactly, and the CPU build must not be made to install them.
FREEZE := freeze --all --exclude-editable | sed -E 's/\+(cpu|cu[0-9]+)$$//' | grep -viE '^(pip==|nvidia-|cuda-|triton==)'

lock: pyproject.toml  ## resolve the dependencies anew and write both lock files
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet "torch==2.13.0" --editable .
	build/lock/bin/pip $(FREEZE) > requirements.lock
	build/lock/bin/pip install --quiet --editable ".[dev,plots]"
	build/lock/bin/pip $(FREEZE) > requirements-dev.lock

clean:  ## remove what was made here, but not the store
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(RUNTIME): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "Gatehouse needs Python 3.11 to 3.13; try make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --requirement requirements.lock
	$(PIP) install --no-deps --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) requirements-dev.lock
	$(PIP) install --requirement requirements-dev.lock
	@touch $@
