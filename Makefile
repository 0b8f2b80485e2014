# `make help` lists the targets. The first call installs everything into .venv, from requirements.lock.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
export UV_PYTHON := $(CURDIR)/.venv
# Without this, each program that the tests start would compile its imports again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-long coverage test-containers lint format contract structure settings bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Trunkline needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY) ## show the whole purchase on a real PostgreSQL and a real NATS
	@$(BIN)/trunkline demo

PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

test: $(READY) ## run the tests, on embedded servers; some of them: make test ARGS="tests/domain -k quote"
	@$(PYTEST) -m "not slow" $(ARGS)

test-long: $(READY) ## run the slow tests (kills, partitions, a million rows), and properties over more examples
	@$(PYTEST) -m "slow or hypothesis" --thorough $(ARGS)

coverage: $(READY) ## run all of them and list the lines that no test runs
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

test-containers: $(READY) ## run all of them on PostgreSQL and NATS in Docker
	@$(BIN)/python -m pytest --containers

lint: $(READY) ## check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

contract: $(READY) ## write docs/asyncapi.yaml, unless the change breaks a consumer
	@$(BIN)/python -m handlers.contract

structure: $(READY) ## write infra/postgres/tables.sql, the tables as the migrations leave them
	@$(BIN)/python -m infra.postgres.structure

settings: $(READY) ## write docs/settings.md, from the descriptions of the settings
	@$(BIN)/python -m infra.settings

bench: $(READY) ## run every benchmark; the results are ratios within one run
	@$(BIN)/python -m benchmarks

lock: $(READY) ## resolve the dependencies again, into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --group dev \
	  --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean: ## remove everything installed and cached
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
