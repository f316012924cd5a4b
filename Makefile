# Two commands do everything on a fresh machine:
#   make demo   environment, install, plugin, a small pipeline built for sm_89, and a picture
#   make test   the same set-up if needed, then linters, type checks and all tests
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# A file for each part of the set-up: pip itself, what the package requires, the package with its plugin.
PIP    := $(VENV)/.pip
NEEDS  := $(VENV)/.requirements
PLUGIN := $(VENV)/.plugin
READY  := $(VENV)/.ready
# Libraries of examples/cpp that a machine without them gets as Debian's packages, beside the environment, not installed.
CPPDEB := $(VENV)/.cpp
DEBS   := nlohmann-json3-dev libsentencepiece-dev libsentencepiece0
# A CPU build of torch is enough to build engines; any 2.11 to 2.15 is accepted.
TORCH  ?= torch==2.13.0
# Holds a tritonserver with the Python backend, for tests/serve. Its own requirements (numpy 1) are those of Python code that
# is not used, so it lies beside the environment, not in it.
TRITON ?= nvidia-pytriton==0.7.0
# Tests run side by side: a worker per core, some GB each. Threads that wait must then sleep, not spin: it halves their cost.
WORKERS := -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
CPP     := '*.cu' '*.cuh' '*.cpp' '*.h'
SOURCES := pyproject.toml CMakeLists.txt $(shell find plugins tools -type f -not -name '*.pyc')
# Two at a time: requirements beside the plugin, which compiles for minutes, and linters beside either, or beside tests.
MAKEFLAGS += --jobs=2
unexport MAKEFLAGS  # ninja starts as many compilers as there are cores

.PHONY: demo test lint pytest clean
demo: $(READY)
	$(BIN)/python -m tests.harness.tiny_pipelines engines/tiny-pipeline
	$(BIN)/python build_engines.py --model sdxl-tiny --arch sm_89 --random-weights 0 --preset fast --pipeline engines/tiny-pipeline
	$(BIN)/svdq-trt run engines/sdxl-tiny-sm_89 --prompt "a photo of a fox" --steps 8 --out engines/fox.png

test: lint pytest

lint: $(NEEDS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files $(CPP) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/python tools/gen_contract.py --check
	$(BIN)/python tools/gen_manifest.py --check

pytest: $(READY) $(CPPDEB)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

$(PIP):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=26.3"  # --only-deps
	touch $@

# --no-compile: a quarter of these modules is ever imported, and then compiled.
$(NEEDS): pyproject.toml | $(PIP)
	$(BIN)/pip install --quiet --no-compile "$(TORCH)"
	$(BIN)/pip install --quiet --no-compile --only-deps ".[dev]"
	$(BIN)/pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/tritonserver "$(TRITON)" \
		|| echo "no $(TRITON) for this machine: tests/serve will be skipped"
	touch $@

$(PLUGIN): $(SOURCES) | $(PIP)
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(READY): $(NEEDS) $(PLUGIN)
	touch $@

$(CPPDEB): | $(PIP)
	mkdir -p $(VENV)/cpp
	cd $(VENV)/cpp && { apt-get -qq download $(DEBS) || { apt-get -qq update && apt-get -qq download $(DEBS); }; } \
		&& for deb in *.deb; do dpkg -x $$deb . && rm $$deb; done \
		|| echo "no packages for examples/cpp: tests/cpu/cpp is skipped where its libraries are not installed"
	touch $@

clean:
	rm -rf $(VENV) build engines
