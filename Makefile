# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDIES ?= 80
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test lint docs setup setup-tests clean

setup: $(VENV)/.ready

# CPU builds of torch come first, or pip takes several GB of CUDA packages.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# The whole chain on a synthetic hospital; ends with the path of an HTML report.
demo: setup
	$(BIN)/neurovfm demo --studies $(STUDIES)

# Chromium opens the report and the Prefect UI in the end-to-end tests.
setup-tests: setup
	command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; }

test: setup-tests lint
	$(BIN)/pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The reference pages are written from the code; a test fails when they are old.
docs: setup
	$(BIN)/python -m flows.reference docs/reference

clean:
	rm -rf demo-workspace demo-hospital build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
