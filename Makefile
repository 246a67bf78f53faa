# Each target creates the environment that it needs: one command on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.train
	$(BIN)/aer-train demo

test: lint
	$(BIN)/pytest -q
	$(BIN)/pytest -q -m compile
	$(BIN)/pytest -q -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(VENV)/.train $(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python >= 3.11 is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,report$(if $(findstring .dev,$@),$(comma)dev)]'
	touch $@

comma := ,
