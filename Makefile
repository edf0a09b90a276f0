# `make train` and `make test` need nothing but Python >= 3.10: they build their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OLDEST := .venv-oldest
SOURCES := sb3_agd benchmarks docs examples tests setup.py

.PHONY: train test pytest oldest lint type docs package format clean

# The environment is rebuilt whenever what it is made of changes
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python >= 3.10 is needed: make PYTHON=python3.x' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[benchmarks,tests]"
	touch $@

train: $(INSTALLED)
	$(BIN)/python -m benchmarks.compare

test: lint type docs package pytest

# One file at a time in each of two processes: a file may share an agent that took long to train
pytest: $(INSTALLED)
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile

# The lower bounds of setup.py: what constraints-oldest.txt names replaces its line in constraints.txt
$(OLDEST)/installed: setup.py constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	awk -F== 'NR == FNR {older[$$1]; print; next} !($$1 in older)' constraints-oldest.txt constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable . sb3_contrib rich pytest pytest-xdist tensorboard
	touch $@

# A smoke run without extras: train, save, load, imagine
oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest tests/test_versions.py tests/test_dependencies.py tests/agdppo \
		tests/checkpoint/test_resumable_ppo.py tests/experience/test_recorder.py --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: $(INSTALLED)
	$(BIN)/mypy

# Without what was read before: a page that is not read again does not warn again
docs: $(INSTALLED)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet -b html docs docs/_build

# The files for a package index, with what is installed already. Those of trained agents stay
package: $(INSTALLED)
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation > /dev/null
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) $(OLDEST) runs build dist docs/_build *.egg-info
