# make demo: the whole chain, from rendered rooms to report.html, without a GPU.  make test / lint: what CI runs.
# Both make .venv themselves; it is refreshed only when constraints.txt or pyproject.toml changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
STAMP  := .venv/installed-$(shell cat constraints.txt pyproject.toml | cksum | cut -d ' ' -f 1)

.PHONY: venv demo test lint clean

venv: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	rm -f .venv/installed-*
	touch $@

demo: $(STAMP)
	$(BIN)/vega-edge demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
