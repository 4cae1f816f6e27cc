# Each target works alone on a machine with Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt
NEXT := .venv-next
KERAS_BACKEND ?= jax
DEMO_OUTPUT ?= runs/demo
GUIDES_BACKEND ?= torch
# Two processes fill two cores: XLA compiles on one thread, and PyTorch's threads, where they share
# a core, wait busily for each other for most of the time.
PYTEST_ARGS := -m pytest -q -n 2 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST_ARGS)
PYTEST_NEXT := OMP_NUM_THREADS=1 $(NEXT)/bin/python $(PYTEST_ARGS)
EXTRAS_NEXT := tensorflow,jax,torch,data,convert,export,dev
EXTRAS := $(EXTRAS_NEXT),cv

.PHONY: install demo test test-next test-slow guides docs lint clean

install: $(VENV)/installed

# Bytecode comes with the first import: that of all modules takes a minute, and most are never used.
$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile torch
	$(PIP) --no-compile -e ".[$(EXTRAS)]"
	touch $@

# Trains our smallest dense detector on the built-in shapes, evaluates it and draws its boxes.
demo: install
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python recipes/coco_dense.py --minutes 5.5 --output $(DEMO_OUTPUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What does not touch the backend runs on PyTorch, which builds networks fastest.
test: lint
	KERAS_BACKEND=jax $(PYTEST) -m "not slow and not backend_free"
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow and not backend_free"
	KERAS_BACKEND=torch $(PYTEST) -m "not slow"

# The same against tonight's Keras and KerasHub, in an environment of its own. No KerasCV: its last
# version does not import on Keras 3.16. A nightly package holds the same modules as the stable one
# and pip does not know it: both installed would overwrite each other, so the stable ones go first.
$(NEXT)/installed: pyproject.toml constraints-cpu.txt
	rm -rf $(NEXT)
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt \
	  -e ".[$(EXTRAS_NEXT)]"
	$(NEXT)/bin/pip uninstall --quiet --yes keras keras-hub
	touch $@

test-next: $(NEXT)/installed
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check --upgrade --no-deps --pre \
	  keras-nightly keras-hub-nightly
	$(NEXT)/bin/python -c "import keras, keras_hub; print(keras.__version__, keras_hub.__version__)"
	KERAS_BACKEND=jax $(PYTEST_NEXT) -m "not slow and not backend_free"
	KERAS_BACKEND=tensorflow $(PYTEST_NEXT) -m "not slow and not backend_free"
	KERAS_BACKEND=torch $(PYTEST_NEXT) -m "not slow"

# Longer runs: whole recipes killed and continued, on every backend.
test-slow: install
	for backend in jax tensorflow torch; do \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest -q -m slow || exit 1; done

# Executes every guide in a fresh process; a new page of each and its notebook are written.
guides: install
	$(BIN)/python tools/make_notebooks.py
	KERAS_BACKEND=$(GUIDES_BACKEND) $(BIN)/python tools/run_guides.py --write guides

# README, guides and API reference as a site in build/site.
docs: install
	$(PIP) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(NEXT) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
