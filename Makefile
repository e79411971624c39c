# The same lines run here, on a fresh machine and in CI.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
DEMO_HOME ?= $(CURDIR)/.demo

.PHONY: install demo stop test check lock bench proofs images

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; }
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: install
	$(BIN)/airflow-mlops demo --home $(DEMO_HOME)

stop:
	@test ! -x $(BIN)/airflow-mlops || $(BIN)/airflow-mlops stop --home $(DEMO_HOME)

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev setup.cfg --output-file requirements.lock

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_lock

test: check
	$(BIN)/pytest
