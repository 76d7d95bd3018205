# Penstock: everything a developer runs. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MINUTES ?= 10
DATA ?= ./data
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv run test check lint bench torture format sync-client clean build

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@bash tools/make_venv.sh $(PYTHON) $(VENV)

$(VENV)/.broker: pyproject.toml | $(BIN)/python
	@echo "installing Penstock into $(VENV) …"
	@$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing Penstock and what its tests need into $(VENV) …"
	@$(PIP) -e '.[all,test,check]'
	@touch $@ $(VENV)/.broker

venv: $(VENV)/.dev ## the development environment in .venv

run: $(VENV)/.broker ## start a broker on SQLite in ./data (DATA=…)
	@$(BIN)/penstock serve --data $(DATA)

check: $(VENV)/.dev ## lint, types, import contracts, generated files
	@$(BIN)/python tools/generate_blocking_client.py --check
	@$(BIN)/ruff check .
	@$(BIN)/mypy protocol/penstock_protocol storage/penstock_storage broker/penstock_broker clients/penstock
	@PYTHONPATH=. $(BIN)/lint-imports --no-cache

test: $(VENV)/.dev ## install what tests need, check, and run all tests
	@bash tools/install_test_services.sh
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -n $(JOBS) -q

bench: $(VENV)/.dev ## the durable benchmark, peers beside it
	@$(BIN)/python -m benchmarks $(ARGS)

torture: $(VENV)/.dev ## kills, power cuts, seeds and fuzz for MINUTES (default 10)
	@$(BIN)/python -m tests.torture --minutes $(MINUTES) $(ARGS)

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

sync-client: $(VENV)/.dev ## generate the blocking client from the asynchronous one
	@$(BIN)/python tools/generate_blocking_client.py

build: $(VENV)/.dev ## the wheel, in dist/
	@$(PIP) build && $(BIN)/python -m build --wheel

clean: ## remove the environment and caches (not ./data)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
