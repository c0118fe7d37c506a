# `make demo` sets everything up and runs the whole pipeline; `make up` does so for the Prefect UI; `make test` sets everything up and runs all checks.
# Needs Python 3.11 or later, pip, make, and the package registry. Nothing else: no ffmpeg, no GPU, no server.

PYTHON ?= python3
VENV ?= .venv
ROOT ?= workspace
INCOMING ?= incoming
# torch comes from wherever pip looks. Where that offers CUDA wheels alone, name an index with CPU wheels:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
# Not compiling what may never be imported saves a minute.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

# Hundreds of processes import torch in the tests; each would compile it anew where the environment forbids to keep what was compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev demo up test lint types imports unit test-operation

help:
	@echo "make setup   install what the pipeline needs into $(VENV)"
	@echo "make demo    set up, then run all six stages at small scale into ROOT=$(ROOT)"
	@echo "make up      set up, then start Prefect, its workers and MLflow on this machine; videos in INCOMING=$(INCOMING) start runs"
	@echo "make test    set up with the tools of development, then lint, types, import contracts and tests"
	@echo "make test-operation   the tests with real servers, workers and a browser, which take longer"

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

demo: setup
	$(BIN)/lvmae run lvmae --overlay demo --root $(ROOT)

up: setup
	$(BIN)/lvmae up --root $(ROOT) --incoming $(INCOMING)

test: lint types imports unit

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile

types: setup-dev
	$(BIN)/mypy models stages pipeline

imports: setup-dev
	$(BIN)/lint-imports

unit: setup-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations=15

# The jobs of an operator with real servers, workers and a browser: one after the other, for they take minutes and whole machines.
test-operation: setup-dev
	$(BIN)/python -m pytest -m operation

# Stamps: each step runs again only when what it is made from has changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch alone first: nothing else may pull another build of it.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@
