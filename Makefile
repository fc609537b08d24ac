# Two commands on a bare machine: `make pipeline` and `make test`. Each makes .venv and installs what it needs first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: pipeline test check format lint types clean

pipeline: $(INSTALLED)
	$(BIN)/python scripts/run_pipeline.py

test: $(INSTALLED)
	$(BIN)/pytest -n 2 tests/

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; give it as: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

clean:
	rm -rf .venv
