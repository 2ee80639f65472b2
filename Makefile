# Two commands on a fresh machine: `make demo` and `make test`. Only Python and make are needed.
# `make results ARGS="--data-dir data --minilm MiniLM-L6"` makes those runs of docs/results.md that
# aren't there yet, and its tables and pictures.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs results clean

demo: $(VENV)/demo
	$(BIN)/multiexit demo --overwrite

test: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

docs: $(VENV)/test
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

results: $(VENV)/test
	$(BIN)/python benchmarks/evidence.py $(ARGS)
	$(BIN)/python benchmarks/evidence_page.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch and torchvision are named together so that their builds match.
$(VENV)/demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch torchvision -e .
	touch $@

$(VENV)/test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch torchvision -e '.[test,lint,docs]'
	touch $@ $(VENV)/demo

clean:
	rm -rf $(VENV) demo runs docs/_build
