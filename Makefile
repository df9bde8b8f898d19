# `make demo` and `make test` do everything on a fresh machine: environment, install, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test check format lint types nightly bench clean

# A stamp, so that a changed pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing ttsnn into $(VENV) (PyTorch, TVM and ONNX Runtime: a few minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits_demo.py

# One OpenMP thread a worker: the workers share the cores.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# The long checks too (every zoo network, every mode).
nightly: $(VENV)/.installed
	OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "slow or not slow"

check: lint types test

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The package's folders lie side by side in the repository; a tree of links shows them to the
# type checker as the one package that they become when installed.
types: $(VENV)/.installed
	@rm -rf build/types && mkdir -p build/types/ttsnn
	@ln -s $(CURDIR)/src/ttsnn/* build/types/ttsnn/
	@for part in models frontend passes accel_target runtime; do \
		ln -s $(CURDIR)/$$part build/types/ttsnn/$$part; done
	MYPYPATH=build/types $(BIN)/mypy --config-file pyproject.toml -p ttsnn

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
