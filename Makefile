# Each target works alone on a machine with Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
KERAS_BACKEND ?= jax
DEMO_OUTPUT ?= runs/demo
# Two processes fill two cores: XLA compiles on one thread.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
EXTRAS := tensorflow,jax,torch,cv,data,convert,export,dev

.PHONY: install demo test test-slow lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[$(EXTRAS)]"
	touch $@

# Trains a small detector on the built-in shapes, evaluates it and draws its boxes.
demo: install
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python recipes/coco_retinanet.py --output $(DEMO_OUTPUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	KERAS_BACKEND=jax $(PYTEST) -m "not slow"
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow and not backend_free"
	KERAS_BACKEND=torch $(PYTEST) -m "not slow and not backend_free"

# Longer runs: whole recipes killed and continued, on every backend.
test-slow: install
	for backend in jax tensorflow torch; do \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest -q -m slow || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
