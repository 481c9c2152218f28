PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow net gpu oldest lint docs mutants bench bench-check clean
.DEFAULT_GOAL := test

# The stamp is remade when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# The tests' tensors are small: more processes help, more threads in one do not.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# What only a CUDA device can show; without one, all of it is skipped.
gpu: $(VENV)/.installed
	$(BIN)/python -m pytest tests/test_cuda.py

# Tests of minutes, which `make test` leaves out.
slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Many drawn steps against the plain loop: `make net DRAWS=10000 SEED=0`. What fails is grouped by kind.
DRAWS ?= 2000
SEED ?= 0
net: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.drawing_steps --draws $(DRAWS) --seed $(SEED)

# The core's tests with the oldest versions that are allowed. Left out: what lists the schedulers of
# one version of diffusers, and FSDP2, which torch 2.5 has under another name.
OLDEST := .venv-oldest
NEWER := chainograd/adapters/diffusers distributed
NOT_CORE := hdiscovery benchmarks test_examples.py test_house.py test_mutants.py
oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -e '.[test,hdiscovery]' -c tests/oldest.txt
	$(OLDEST)/bin/python -m pytest -o filterwarnings= tests \
		$(addprefix --ignore=tests/,$(NEWER) $(NOT_CORE))

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
	rm -rf $(VENV) $(OLDEST)

demo: $(VENV)/.installed
	$(BIN)/hdiscovery demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume)
