# Two commands do everything on a fresh machine:
#   make demo   environment, install, plugin, and sdxl-tiny built for sm_89
#   make test   the same set-up if needed, then linters, type checks and all tests
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A CPU build of torch is enough to build engines; any 2.11 to 2.13 works.
TORCH  ?= torch==2.13.0
# Holds a tritonserver with the Python backend, for tests/serve. Its own requirements (numpy 1) are those of Python code that
# is not used, so it lies beside the environment, not in it.
TRITON ?= nvidia-pytriton==0.7.0
# Tests run side by side: a worker per core, some GB each. Threads that wait must then sleep, not spin: it halves their cost.
WORKERS := -n logical --maxprocesses 4 --dist loadfile
CPP     := '*.cu' '*.cuh' '*.cpp' '*.h'
SOURCES := pyproject.toml CMakeLists.txt $(shell find plugins tools -type f -not -name '*.pyc')

.PHONY: demo test lint clean
demo: $(READY)
	$(BIN)/python build_engines.py --model sdxl-tiny --arch sm_89 --random-weights 0 --preset fast

test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files $(CPP) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/python tools/gen_contract.py --check
	$(BIN)/python tools/gen_manifest.py --check

$(READY): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tritonserver "$(TRITON)" \
		|| echo "no $(TRITON) for this machine: tests/serve will be skipped"
	touch $@

clean:
	rm -rf $(VENV) build engines
