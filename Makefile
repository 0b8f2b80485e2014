# `make help` explains. Everything is installed into .venv, from requirements.lock, at the first call.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
export UV_PYTHON := $(CURDIR)/.venv
# Tests start many programs, each of which would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-containers lint format contract structure settings bench lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Trunkline needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY) ## the whole purchase, told on a real PostgreSQL and a real NATS
	@$(BIN)/trunkline demo

test: $(READY) ## every test, on embedded servers; some of them: make test ARGS="tests/domain -k quote"
	@$(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder $(ARGS)

coverage: $(READY) ## the same, with the lines that no test runs
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

test-containers: $(READY) ## the same tests on PostgreSQL and NATS in Docker
	@$(BIN)/python -m pytest --containers

lint: $(READY) ## style, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

contract: $(READY) ## write docs/asyncapi.yaml, unless that breaks who builds on it
	@$(BIN)/python -m handlers.contract

structure: $(READY) ## write infra/postgres/tables.sql, the tables as the migrations leave them
	@$(BIN)/python -m infra.postgres.structure

settings: $(READY) ## write docs/settings.md, from the descriptions of the settings
	@$(BIN)/python -m infra.settings

bench: $(READY) ## every benchmark, as ratios in one run
	@$(BIN)/python -m benchmarks

lock: $(READY) ## resolve the dependencies anew into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --group dev \
	  --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean: ## remove what was installed and cached
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
