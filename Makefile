# Commands for development. They need Python 3.11 to 3.13, make and a package index.

PYTHON ?= python3
GATEHOUSE_STORE ?= store
export GATEHOUSE_STORE

BIN := .venv/bin
RUNTIME := .venv/runtime.installed
DEVELOPMENT := .venv/development.installed
TABLE_FILES := .venv/table-files.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help serve demo dev test test-fast check soak bench bench-peers overload format lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

serve: $(RUNTIME)  ## serve the store on 127.0.0.1:8000; trains a demo model if the store is empty
	@test -n "$(wildcard $(GATEHOUSE_STORE)/*/*/model.json)" || $(MAKE) --no-print-directory demo
	@exec $(BIN)/gatehouse serve

demo: $(TABLE_FILES)  ## train the demo model; publish it and the tables of its items and users
	$(BIN)/python -m models train --config models/configs/demo.toml --store "$(GATEHOUSE_STORE)"
	$(BIN)/python -m models tables --config models/configs/demo.toml --out build/tables
	$(BIN)/gatehouse items publish build/tables/items.jsonl --model feed --key item_id
	$(BIN)/gatehouse users publish build/tables/users.jsonl --model feed --key user_id

dev: $(DEVELOPMENT)  ## install what tests and benchmarks need

# worksteal gives each worker a contiguous part of the tests, so most tests of a file run on one
# worker and share its servers and models. A worker without tests takes some from the others.
# The order of sets is the same in every run, as are the seeds in tests/conftest.py.
PYTEST := PYTHONHASHSEED=0 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(DEVELOPMENT)  ## run all tests; fails if less than 95 % of branches are covered
	$(PYTEST) --cov

test-fast: $(DEVELOPMENT)  ## run the tests that need no server process and little time
	$(PYTEST) -m "not slow" --ignore tests/end_to_end --hypothesis-profile fast

check: $(DEVELOPMENT)  ## check style, formatting, types and imports between layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(DEVELOPMENT)  ## send 100 000 mixed requests to a server and check every response (minutes)
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak.versions
	$(BIN)/python -m tests.soak.tables

bench: $(DEVELOPMENT)  ## measure rates, latency and CPU time a request, and the goals; needs wrk
	$(BIN)/python -m tests.bench.percentiles
	$(BIN)/python -m tests.bench.hot_path

bench-peers: $(DEVELOPMENT)  ## measure Triton, mosec and other servers beside this one; needs wrk
	$(BIN)/python -m tests.bench.peers --write

overload: $(DEVELOPMENT)  ## measure and plot goodput and p99 at up to 10 times the capacity
	$(BIN)/python -m tests.bench.overload --out tests/bench/overload.svg

format: $(DEVELOPMENT)  ## format the code
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

# uv reads UV_DEFAULT_INDEX and UV_INDEX instead of pip's configuration. The locks hold for every
# supported Python and platform, with the hashes of all files of a release. They are complete, so
# pip installs them with --no-deps. Packages that only CUDA builds of torch need are removed: torch's
# own metadata pins them, and CPU builds do not need them.
LOCK := build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-header --no-annotate \
	--constraint requirements-torch.lock pyproject.toml
# What an extra adds to the runtime.
WITHOUT_RUNTIME := awk 'FNR == NR { known[$$1]; next } /^[^ ]/ { keep = !($$1 in known) } keep' \
	build/lock/runtime
WITHOUT_TORCH := awk '/^[^ ]/ { keep = !/^(torch|triton)==|^(cuda|nvidia)-/ } keep'

lock: pyproject.toml  ## resolve all dependencies again and write the lock files
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	$(LOCK) --output-file build/lock/runtime
	$(LOCK) --output-file build/lock/development --constraint build/lock/runtime \
		--extra dev --extra plots
	$(WITHOUT_TORCH) build/lock/runtime > requirements.lock
	$(WITHOUT_TORCH) build/lock/development > requirements-dev.lock
	for extra in data otel; do \
		$(LOCK) --output-file build/lock/$$extra --constraint build/lock/development \
			--extra $$extra && \
		$(WITHOUT_RUNTIME) build/lock/$$extra > requirements-$$extra.lock || exit 1; \
	done

clean:  ## remove generated files, except the store
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(RUNTIME): requirements.lock requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "Gatehouse needs Python 3.11 to 3.13; try make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	$(PIP) install --requirement requirements-torch.lock
	$(PIP) install --no-deps --editable .
	@touch $@

# Publishing tables needs pyarrow, which the service does not.
$(TABLE_FILES): $(RUNTIME) requirements-data.lock
	$(PIP) install --no-deps --require-hashes --requirement requirements-data.lock
	@touch $@

$(DEVELOPMENT): $(RUNTIME) requirements-dev.lock
	$(PIP) install --no-deps --require-hashes --requirement requirements-dev.lock
	@touch $@
