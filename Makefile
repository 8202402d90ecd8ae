# Everything starts here: a target makes .venv when it is missing. Needs Python 3.11 or 3.12, git and make, nothing else.
PYTHON ?= python3
VENV := .venv/bin

# dvc.yaml says `python -m tasks STAGE`: that python must be the one of .venv.
export PATH := $(CURDIR)/$(VENV):$(PATH)
# Nothing goes online after the install, and no tool reports home.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export GX_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help demo code test test-all fleet-test lint lock flow setup train profile clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: .venv  ## run the sample pipeline (what is up to date is not run again), print the result
	dvc repro
	@python -m tasks summary

# The tests' tensors are tiny: one thread for each of two processes is several times as fast as two threads for one.
test test-all: export OMP_NUM_THREADS := 1
test: .venv  ## run the quick tests (minutes on two cores)
	python -m pytest -n 2 --dist worksteal

test-all: .venv  ## run the quick tests and those with processes, servers and a browser
	python -m pytest -n 2 --dist worksteal -m "not slow and not orchestration"

fleet-test: .venv  ## run the tests against real servers and workers (a quarter of an hour)
	python -m pytest -m orchestration

lint: .venv  ## style, formatting, types
	ruff check .
	ruff format --check .
	mypy gdpo tasks flows

flow: .venv  ## run the same stages as a Prefect flow
	python -m flows.pipeline

setup: .venv  ## pools, deployments, automations on the Prefect server at PREFECT_API_URL
	python -m flows.setup

train: .venv  ## fine-tune, evaluate and publish on a GPU worker of that server
	@echo "prefect deployment run gdpo-train/a100 --watch"
	@prefect deployment run gdpo-train/a100 --watch

profile: .venv  ## make profile PROFILE=paper: write profiles/paper.yaml into params.yaml
	python -m tasks profile $(PROFILE)

code: .venv  ## rewrite code/<stage>.sha256, each stage's code dependency in dvc.yaml
	python -m tasks.run.code

lock: .venv  ## pin what pyproject.toml asks for, with hashes
	uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url --no-header \
	    -q -o requirements.lock pyproject.toml

clean:  ## remove .venv and the tools' caches; keep data, models, reports and DVC's cache
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache

.PHONY: .venv
.venv: .venv/installed

# uv installs the pinned set: pip's resolver needs more than ten minutes for it. Compiled once, here, because every stage is a
# process of its own that imports torch and diffusers. The stamp makes the second call free.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else \
	    "needs Python 3.11 or 3.12, found %d.%d; name one with: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/uv pip install --quiet --python $(VENV)/python --compile-bytecode --require-hashes -r requirements.lock
	$(VENV)/uv pip install --quiet --python $(VENV)/python --no-deps --no-build-isolation -e .
	@touch $@
