# `make run`: set up and run the default job.  `make test`: set up and run everything that CI runs.
# `make check-figures`: what tables, figures and report look like, which needs pdflatex, pdffonts and Chromium.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check-figures coverage lint clean
.DELETE_ON_ERROR:

run: .venv/runtime
	$(BIN)/python run.py

test: .venv/dev lint
	$(BIN)/python -m pytest -n 2

# Needs pdflatex with siunitx and adjustbox, pdffonts and Chromium from the system, and says so where one is missing.
check-figures: .venv/dev
	$(BIN)/python -m pytest tests/figures_check -q

# The same tests, traced: twice as slow.
coverage: .venv/dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamps are younger than the requirements they installed.
.venv/runtime: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv
