# Everything starts here: a target makes .venv when it is missing. Needs Python 3.11 or 3.12, git and make, nothing else.
PYTHON ?= python3
# requirements-worker.lock is the same without tools of development (deploy/Dockerfile).
LOCK ?= requirements.lock
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
.PHONY: help demo demo-vlcot study code test test-all test-full fleet-test chaos lint lock docs flow setup train profile clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: .venv  ## run the sample pipeline (what is up to date is not run again), print the result
	dvc repro report
	@python -m tasks summary

# After `make demo` both systems are shown side by side.
demo-vlcot: .venv  ## train and evaluate the second system, RealSR-R1, on the same photographs
	dvc repro vlcot-report
	@if test -f reports/index.html; then dvc repro --single-item systems && python -m tasks summary; fi

study: .venv  ## train all ablations of the paper (hours on two cores; a stopped run goes on): reports/study
	dvc repro select
	python -m tasks ablate --profile study --out reports/study

# The tests' tensors are tiny: one thread for each of two processes is several times as fast as two threads for one.
test test-all: export OMP_NUM_THREADS := 1
test-full: export OMP_NUM_THREADS := 2
test: .venv  ## run the quick tests (minutes on two cores)
	python -m pytest -n 2 --dist worksteal

test-all: .venv  ## run all tests but the fleet's: also processes, servers, a browser, networks of full size
	python -m pytest -n 2 --dist worksteal -m "not full_size and not orchestration and not chaos"
	$(MAKE) test-full

test-full: .venv  ## run the tests of networks of full size (minutes, 7 GB of memory)
	python -m pytest -m full_size tests/gdpo

fleet-test: .venv  ## run the tests against real servers and workers (a quarter of an hour)
	python -m pytest -m orchestration tests/flows

chaos: .venv  ## break stages, disk, files and the bucket for a quarter of an hour: nothing may be lost
	python -m benchmarks.chaos --minutes 13

lint: .venv  ## style, formatting, types
	ruff check .
	ruff format --check .
	mypy gdpo tasks flows

docs: .venv  ## build the documentation into site/ (site/index.html); warnings are errors
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet --strict

flow: .venv  ## run the same stages as a Prefect flow
	python -m flows.pipeline

setup: .venv  ## pools, deployments, automations on the Prefect server at PREFECT_API_URL
	python -m flows.setup

train: .venv  ## fine-tune, evaluate and publish on a GPU worker of that server
	@echo "prefect deployment run gdpo-train/a100 --watch"
	@prefect deployment run gdpo-train/a100 --watch

profile: .venv  ## make profile PROFILE=paper: write profiles/paper.yaml into params.yaml
	python -m tasks profile $(PROFILE)

code: .venv  ## rewrite code/<stage>.sha256, each stage's code dependency in dvc.yaml; state new sections in params.yaml
	python -m tasks.run.code

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q pyproject.toml
lock: .venv  ## pin what pyproject.toml asks for, with hashes
	$(COMPILE) --extra dev -o requirements.lock
	$(COMPILE) --extra metrics --extra fleet --extra track --override deploy/no-tools.txt -o requirements-worker.lock

clean:  ## remove .venv and the tools' caches; keep data, models, reports and DVC's cache
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache

.PHONY: .venv
.venv: .venv/installed

# uv installs the pinned set: pip's resolver needs more than ten minutes for it. Compiled once, here, because every stage is a
# process of its own that imports torch and diffusers. The stamp makes the second call free.
.venv/installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else \
	    "needs Python 3.11 or 3.12, found %d.%d; name one with: make PYTHON=python3.12" % v)'
	@echo "installing into .venv: minutes, and about 7 GB of disk (without CUDA: docs/tutorials/first-picture.md)"
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/uv pip install --quiet --python $(VENV)/python --compile-bytecode --require-hashes -r $(LOCK)
	$(VENV)/uv pip install --quiet --python $(VENV)/python --no-deps --no-build-isolation -e .
	@touch $@
