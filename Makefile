# Penstock: everything a developer runs. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MINUTES ?= 10
DATA ?= ./data
JOBS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv run test check bench torture format sync-client clean build

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

# pip is the last thing that a new environment gets: without it a start was interrupted.
$(BIN)/pip:
	@bash tools/make_venv.sh $(PYTHON) $(VENV)

# Stamp files: what was installed for which pyproject.toml. A development environment can also run the broker.
$(VENV)/.broker: pyproject.toml | $(BIN)/pip
	@echo "installing Penstock into $(VENV) …"
	@$(PIP) -e '.[broker]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	@echo "installing Penstock and what its tests need into $(VENV) …"
	@$(PIP) -e '.[all,test,check]'
	@touch $(VENV)/.broker $@

venv: $(VENV)/.dev ## the development environment, in .venv

run: $(VENV)/.broker ## start a broker on SQLite in ./data (DATA=…, ARGS=… for more options)
	@echo 'The command `penstock` is here; in another terminal: export PATH="$(CURDIR)/$(BIN):$$PATH"'
	@exec $(BIN)/penstock serve --data $(DATA) $(ARGS)

check: $(VENV)/.dev ## generated files, lint, types, import contracts
	@$(BIN)/python tools/generate_blocking_client.py --check
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >$(VENV)/contracts.log 2>&1 || { cat $(VENV)/contracts.log; exit 1; }
	@echo "generated files, lint, types and import contracts are in order"

test: $(VENV)/.dev ## install what tests need, check, and run all tests (JOBS=2)
	@bash tools/install_test_services.sh
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

bench: $(VENV)/.dev ## the durable benchmark, installed peers beside it (ARGS=--help)
	@$(BIN)/python -m benchmarks $(ARGS)

torture: $(VENV)/.dev ## kills, power cuts, seeds and fuzz for MINUTES=10
	@$(BIN)/python -m tests.torture --minutes $(MINUTES) $(ARGS)

format: sync-client ## lay out the code, and mend what lint can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

sync-client: $(VENV)/.dev ## generate the blocking client from the asynchronous one
	@$(BIN)/python tools/generate_blocking_client.py

build: $(VENV)/.dev ## the wheel and the source archive, in dist/
	@$(PIP) build
	@$(BIN)/python -m build

clean: ## remove the environment, caches and builds (never ./data)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
