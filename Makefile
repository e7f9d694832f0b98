# `make demo` and `make test` are all a fresh machine needs: every target makes its environment first.
#
# constraints.txt names the version of torch and not its build, so each machine gets the build of its own
# package index: PyPI's CUDA build on Linux, a CPU build where the index offers one. To keep CUDA off a machine
# without a GPU:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
#
# A CUDA build brings the Triton that it was built with. A CPU build brings none, and gets the one that CI compiles
# the GPU kernels with: that needs no GPU.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)/oldest

# Tests run on one thread each, a process to a core: four at most, so that their memory fits a laptop and one GPU.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all oldest check docs bench clean

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(VENV)/.installed ## make .venv and install Gossamer with the versions that CI uses

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev,peers]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[triton]'
	touch $@

demo: setup ## train a dense and a sparse GPT-2 on Python source, compare them, write runs/demo/report.html
	$(BIN)/python examples/demo.py

# The oldest transformers that is supported, with what it needs of its own time, beside the newest in .venv.
$(OLDEST)/.installed: Makefile $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST) \
		transformers==5.4.0 huggingface-hub==1.5.0 tokenizers==0.22.2 httpx==0.28.1 httpcore==1.0.9 certifi \
		datasets==4.8.5 requests==2.34.2 urllib3==2.8.0 idna==3.20 charset-normalizer==3.5.3
	touch $@

oldest: $(OLDEST)/.installed ## run the tests of models of transformers with the oldest release that is supported
	PYTHONPATH=$(OLDEST) $(PYTEST) -m "not slow" tests/integrations/huggingface

test: setup ## run the tests that take minutes
	$(PYTEST) -m "not slow"
	$(MAKE) oldest

test-all: setup ## run every test, the slow ones too
	$(PYTEST)
	$(MAKE) oldest

check: setup ## lint, formatting, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: setup ## build the pages into docs/_build/html
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/images/make.py
	$(BIN)/sphinx-build -W --keep-going docs docs/_build/html

bench: setup ## measure sparse against dense attention on this machine
	$(BIN)/gossamer bench

clean: ## remove the environment, caches and built pages; runs/ stays
	rm -rf $(VENV) dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
