# make run    from a fresh clone: train, prune, quantize, export, measure and report on scikit-learn's digits
# make test   the tests
# make check  ruff, mypy, and the tests with warnings as errors; this is what CI runs
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: run test check types lint clean

run: .venv/installed
	$(BIN)/python -m compress run --model k49 --data digits

test: .venv/installed
	$(BIN)/python -m pytest

check: lint types test

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy compress

# The marker is newer than pyproject.toml only after an install that went through to its end.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build src/*.egg-info
