# make boot    set up what is missing, boot a node, print where to go
# make test    set up what tests need, run them
# make check   format, lint, types, import contracts, docs with their links
# make bench   the benchmarks; peers take part where they are installed (make peers)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
# Tests of a module stay together, as they share what is slow to make. `make test PARALLEL=` runs them one by one.
PARALLEL ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile
# Which benchmarks `make bench` runs.
BENCH  ?= first_token messages overload
# Anything for pip, such as where your machine gets the CPU build of torch from.
PIP_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt

.PHONY: boot chat test test-all check format docs bench bench-engine peers clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -4

boot: $(VENV)/.runtime
	@$(BIN)/python -m microkernel boot $(ARGS)

chat: $(VENV)/.runtime
	@$(BIN)/python -m microkernel chat $(ARGS)

test: $(VENV)/.development
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(VENV)/.development
	$(BIN)/python -m pytest -m "" $(PARALLEL) $(ARGS)

check: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.development
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build

bench: $(VENV)/.runtime
	@for each in $(BENCH); do echo $(BIN)/python -m benchmarks.$$each $(ARGS); $(BIN)/python -m benchmarks.$$each $(ARGS) || exit 1; done

bench-engine: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.engine $(ARGS)

peers: $(VENV)/.development
	$(PIP) -e '.[peers]'

clean:
	rm -rf $(VENV) docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

COMPILED := setup.py services/inference/native/recipe.py $(wildcard microkernel/*.[ch] services/inference/native/kernels/*)

# A stamp a set-up: the second call starts at once, a changed pin installs again.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("microkernel needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt $(COMPILED) | $(VENV)/bin/python
	@echo "installing microkernel and its pinned dependencies into $(VENV) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.development: pyproject.toml constraints.txt $(COMPILED) | $(VENV)/bin/python
	@echo "installing what tests and checks need into $(VENV) ..."
	@$(PIP) -e '.[test,check,docs,traces,transformers]'
	@touch $@ $(VENV)/.runtime
