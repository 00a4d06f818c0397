# make demo         install, then train the demo model on this machine
# make test         install, then run every test that needs no GPU
# make check        lint and the quick tests
# make gpu-kernels  on a machine with a GPU: measure the kernels (10 minutes), then print and plot the results;
#                   GPU_PYTHON is the Python with PyTorch for CUDA, RESULTS the folder of lines and plots

PYTHON ?= python3
GPU_PYTHON ?= python3
RESULTS ?= benchmarks/results
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check gpu-kernels clean

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
	$(GPU_PYTHON) -m benchmarks.report $(RESULTS)/kernels.jsonl --out $(RESULTS); exit $$status

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
