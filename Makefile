# make demo         install, then train the demo model on this machine
# make test         install, then run every test that needs no GPU
# make check        lint and the quick tests
# make gpu-kernels  on a machine with a GPU: measure the kernels (10 minutes), then print and plot the results;
#                   GPU_PYTHON is the Python with PyTorch for CUDA, RESULTS the folder of lines and plots
# make gpu-train    likewise: training, one thing more at a time, then beside its peers where they are installed

PYTHON ?= python3
GPU_PYTHON ?= python3
RESULTS ?= benchmarks/results
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check gpu-kernels gpu-train clean

demo: .venv/installed
	$(BIN)/python -m fastling.train

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -m "not gpu"

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow"

# What is wrong or failed is in the report, too; status 2 is a machine without a GPU.
gpu-kernels:
	$(GPU_PYTHON) -m benchmarks.kernels --out $(RESULTS)/kernels.jsonl; status=$$?; [ $$status -eq 2 ] || \
	$(GPU_PYTHON) -m benchmarks.report $(RESULTS)/*.jsonl --out $(RESULTS); exit $$status

# The most telling first: what is measured is kept, should time run out.
TRAIN := $(GPU_PYTHON) -m benchmarks.train --sequence-length 4096 --steps 12 --out $(RESULTS)/train.jsonl
gpu-train:
	-$(TRAIN) --size 8b --batch-tokens 16384 --ladder --trainers "+ kernels; + compile, selective; + compile, full; + compile, float8"
	-$(TRAIN) --size 1b --batch-tokens 32768 --ladder
	-$(TRAIN) --size 7b --batch-tokens 16384 --ladder --trainers "+ kernels; + compile, selective; + compile, full; + compile, float8"
	$(TRAIN) --size 1b --batch-tokens 16384

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
