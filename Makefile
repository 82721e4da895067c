# Everything a developer does here. Nothing but Python 3.11 or newer, git and make is needed to begin with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := shared services/planner services/dispatcher services/runner services/gateway treadle
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	$(foreach name,shared planner dispatcher runner gateway,--no-emit-package treadle-$(name)) --no-emit-package treadle

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lock secrets bench bench-api bench-agent bench-watch bench-replay soak clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/set-up ## Make .venv with treadle and the tools in it; the second time there is nothing to do

demo: setup ## Run a plan of tasks on a small repository, with the real model or a scripted one
	@$(BIN)/treadle demo

test: setup ## Run all tests, in two processes
	$(BIN)/pytest -n 2

check: setup ## Look at the code: ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup ## Choose the versions of all dependencies anew (requirements*.lock)
	$(LOCK) --upgrade requirements.in --output-file requirements.lock
	$(LOCK) --upgrade requirements.in --group dev --constraints requirements.lock --output-file requirements-dev.lock

secrets: setup ## Make the secrets that compose.yaml mounts, and keep those that are there; NEW_KEY=1 adds an encryption key
	$(BIN)/python deploy/make_secrets.py $(if $(NEW_KEY),new-key)

bench-api: setup ## Measure the gateway beside a bare handler and a bare append
	$(BIN)/python -m bench api

bench-agent: setup ## Measure the runner with agents: overhead, memory, cancel, recovery, workspaces
	$(BIN)/python -m bench agent

bench-watch: setup ## Measure what it costs to wait for 5,000 people's results in 50 repositories
	$(BIN)/python -m bench watch

bench-replay: setup ## Measure folding a history from the log, and looking back at long ones
	$(BIN)/python -m bench replay

bench: setup ## Measure the figures that README states
	$(BIN)/python -m bench

soak: setup ## Kill at random for minutes, live through thousands of simulated worlds, look for new counterexamples
	$(BIN)/pytest -m soak tests/end_to_end
	TREADLE_SEEDS=5000 $(BIN)/pytest --timeout 0 tests/simulation
	$(BIN)/pytest --timeout 0 --hypothesis-profile "new examples" tests/shared tests/planner

clean: ## Remove .venv and what the tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/set-up: requirements-dev.lock $(PROJECTS:%=%/pyproject.toml)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " \
		+ sys.version.split()[0] + ": name another one with make PYTHON=python3.12")'
	@command -v git >/dev/null || { echo "git is missing: install git 2.38 or newer" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps $(PROJECTS:%=-e ./%)
	@touch $@
