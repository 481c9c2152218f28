PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs mutants bench bench-check clean
.DEFAULT_GOAL := test

# The stamp is remade when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.installed
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

# Minutes: every known mistake is made in a copy, and its tests must fail.
mutants: $(VENV)/.installed
	$(BIN)/python tests/mutate.py --jobs 2

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run_all.py

# Counts and bytes, not seconds, against the committed results.
bench-check: $(VENV)/.installed
	$(BIN)/python benchmarks/check.py

clean:
	rm -rf $(VENV)

demo: $(VENV)/.installed
	$(BIN)/hdiscovery demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume)
