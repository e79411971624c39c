# The same lines run here, on a fresh machine and in CI.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
DEMO_HOME ?= $(CURDIR)/.demo
IMAGE ?= airflow-mlops-stage
# The first that works: a docker without its daemon builds nothing.
ENGINE ?= $(shell for one in docker podman buildah; do $$one info > /dev/null 2>&1 && echo $$one && break; done)

.PHONY: install demo stop test check browser postgresql redis kubernetes lock bench proofs images

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version); Python 3.11, 3.12 or 3.13 is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; }
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: install
	$(BIN)/airflow-mlops demo --home $(DEMO_HOME)

stop:
	@test ! -x $(BIN)/airflow-mlops || $(BIN)/airflow-mlops stop --home $(DEMO_HOME)

lock:
	$(COMPILE) --extra dev setup.cfg --output-file requirements.lock
	$(BIN)/python -m tests.check_lock --requirements docker/stage-cpu.lock | \
	  $(COMPILE) --constraint requirements.lock --no-emit-package tensorflow - --output-file docker/stage-cpu.lock
	$(BIN)/python -m tests.check_lock --requirements docker/stage-cuda.lock | \
	  $(COMPILE) --constraint requirements.lock - --output-file docker/stage-cuda.lock
	$(BIN)/python -m tests.check_lock --stamp

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_lock

# One process per core: models are loaded at idle priority, which a third one would starve. The tests of a file share expensive fixtures.
# In the order of their names the files begin with the longest, the whole deployment; by their number of tests they would end with it.
# Modules are compiled once, whatever the environment says: hundreds of processes import them.
test: export PYTHONDONTWRITEBYTECODE =
test: check browser postgresql
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/proofs -m "not kubernetes and not long"

# The pages are looked at with the system's Chromium.
browser:
	@command -v chromium > /dev/null || { \
	  test "$$(id -u)" = 0 || { echo "chromium is missing: install it as root (apt-get install chromium), then run make test again." >&2; exit 1; }; \
	  apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

# The tests start PostgreSQL servers of their own: the system gets the programs, and no server that runs.
postgresql:
	@test -n "$(wildcard /usr/lib/postgresql/*/bin/initdb)" || { \
	  test "$$(id -u)" = 0 || { echo "PostgreSQL's server is missing: install it as root (apt-get install postgresql), then run make test again." >&2; exit 1; }; \
	  mkdir -p /etc/postgresql-common/createcluster.d && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.d/no-main.conf && \
	  apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends postgresql; }

# The tests' own control plane is built from Debian's sources, once per machine, unless KUBECONFIG names a cluster; that takes six minutes.
kubernetes: install
	@test -n "$$KUBECONFIG" || $(BIN)/python -m tests.kubernetes.build
	$(BIN)/python -m pytest tests/kubernetes

# The broker of the Celery executor in one proof.
redis:
	@command -v redis-server > /dev/null || { \
	  test "$$(id -u)" = 0 || { echo "redis-server is missing: install it as root (apt-get install redis-server), then run make proofs again." >&2; exit 1; }; \
	  apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends redis-server; }

# What is claimed, shown by experiment: minutes, not seconds.
proofs: install browser postgresql redis
	$(BIN)/python -m pytest tests/proofs
	$(BIN)/python -m pytest -m long tests/unit tests/browser tests/integration

bench: install
	$(BIN)/python -m tests.kubernetes.build
	$(BIN)/python -m tests.benchmarks

# airflow-mlops-stage:cpu and airflow-mlops-stage:cuda, by whichever engine there is.
images:
	@test -n "$(ENGINE)" || { echo "Neither docker nor podman nor buildah works here: start or install one of them, then run make images again." >&2; exit 1; }
	$(ENGINE) build --file docker/Dockerfile --build-arg VARIANT=cpu --tag $(IMAGE):cpu .
	$(ENGINE) build --file docker/Dockerfile --build-arg VARIANT=cuda --tag $(IMAGE):cuda .
