# make demo: a network learns handwritten digits.   make test: the tests.   make test-all: also the slow tests.
# make tour: runs the commands of docs/tour.md and of the README, and writes their outputs and pictures into the pages.
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
RUN = $(VENV)/bin/python
# Each process takes whole files of tests, about 2 GB of memory and a core.
PYTEST = $(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: demo tour test test-all smoke test-lowest lint format

demo: $(VENV)/installed
	$(RUN) train.py --config=configs/lenet5_digits.py

tour: $(VENV)/installed
	$(RUN) benchmarks/tour.py
	$(RUN) benchmarks/tour.py --page=README.md

test: $(VENV)/installed
	$(PYTEST)

test-all: $(VENV)/installed
	$(PYTEST) -m "slow or not slow"

# Tests that show whether another Python or other versions of the libraries work.
smoke: $(VENV)/installed
	$(PYTEST) -m smoke

# The smoke tests with the lowest versions that requirements.txt allows.
test-lowest:
	mkdir -p .venv-lowest && sed 's/>=/==/' requirements.txt > .venv-lowest/requirements.txt
	$(MAKE) smoke VENV=.venv-lowest REQUIREMENTS=.venv-lowest/requirements.txt

lint: $(VENV)/installed
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

format: $(VENV)/installed
	$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@
