# `make serve` and `make test` work on a machine that has Python 3.11 or newer, make and git, and nothing else.
# Everything is installed into .venv; no activation is needed.

PYTHON ?= python3
ARGS ?=
# Test files that run at a time. Two suit the two cores that CI has; more need memory, about 2 GB each.
JOBS ?= 2

PACKAGES := quire frontend scheduler_proc gpu_workers kernels_cpu kernels_cuda ipc
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Newer than pyproject.toml and constraints.txt means: installed, do not ask pip again. What serves, and with it what tests.
STAMP := $(VENV)/.quire-installed
TEST_STAMP := $(VENV)/.quire-test-installed

# Runs on any Python there is, also a very old one, so that the message is ours and not a syntax error.
CHECK_PYTHON := import sys; v = sys.version_info[:2]; \
	sys.exit(0 if v >= (3, 11) else "quire needs Python 3.11 or newer; %s is %d.%d. Name another one: make PYTHON=python3.12" % ((sys.executable,) + v))

.PHONY: help install develop serve test lint format wheel clean

help:
	@echo 'make serve     install what is missing, then run the server (flags: make serve ARGS="--port 9000")'
	@echo 'make test      lint, type check, compile the CUDA kernels and test, as CI does'
	@echo 'make install   only install, into .venv'
	@echo 'make develop   install what tests need as well'
	@echo 'make lint      ruff and mypy only'
	@echo 'make format    let ruff rewrite the code'
	@echo 'make wheel     build dist/*.whl with the compiled CUDA kernels in it'
	@echo 'make clean     remove caches and build outputs; .venv stays'

install: $(STAMP)

develop: $(TEST_STAMP)

# torch first and by its pin: whatever else asks for torch then finds it in place, in the build that this machine offers.
# setuptools by its pin too, so that building quire below downloads nothing unpinned.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	    command -v "$(PYTHON)" >/dev/null || { echo '$(PYTHON) is not there. Name another Python: make PYTHON=...' >&2; exit 1; }; \
	    "$(PYTHON)" -c '$(CHECK_PYTHON)' || exit 1; \
	    "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@$(BIN)/python -c '$(CHECK_PYTHON)'
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip
	$(PIP) install -c constraints.txt setuptools torch
	$(PIP) install -c constraints.txt --no-build-isolation -e .
# Where PYTHONDONTWRITEBYTECODE is set, each start would compile all of quire again, in every process.
	$(BIN)/python -m compileall -q $(PACKAGES)
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev,clients]'
	$(PIP) install -c constraints.txt --no-deps instructor
	@touch $@

serve: install
	@exec $(BIN)/quire serve $(ARGS)

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m kernels_cuda.build --check --out build/cubin
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The cubins are package data; from an empty folder, so that none of an earlier source is shipped.
wheel: develop
	rm -rf kernels_cuda/_cubin build/lib build/bdist.*
	$(BIN)/python -m kernels_cuda.build --check
	$(PIP) wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist kernels_cuda/_cubin *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
