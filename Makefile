# make demo      score the sample slides
# make test      run the tests
# make fuzz      try the properties with new examples, for MINUTES=60
# make chaos     kill, crowd and damage runs, and compare what they leave
# make lint      check style and types
# make pictures  make the pictures of docs/tutorial.md
# make samples   render the sample slides anew
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= wsiscore-out
MINUTES ?= 60
SHELL := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: demo test fuzz chaos lint pictures samples clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/wsiscore score sample_slides/*.svs -o $(OUT) | cut -f 1-9
	@echo "Reports: $(OUT)/index.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

fuzz: $(VENV)/.dev
	end=$$(($$(date +%s) + 60 * $(MINUTES))); while [ $$(date +%s) -lt $$end ]; do \
	  $(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz || exit 1; done

chaos: $(VENV)/.dev
	$(BIN)/python benchmarks/chaos.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pictures: $(VENV)/.installed
	$(BIN)/python benchmarks/pictures.py

samples: $(VENV)/.installed
	$(BIN)/wsiscore render sample_slides --name low --index 6 --seed 4
	$(BIN)/wsiscore render sample_slides --name near-cutoff --index 18 --seed 2
	$(BIN)/wsiscore render sample_slides --name high --index 42 --seed 3

# One environment with wsiscore, editable, made anew when what it rests on changes; .dev adds what tests and checks need.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wsiscore needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
