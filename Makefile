# make demo   vLLM failing for memory without us, and starting with us, on this machine's CPU
# make test   lint, types, layers, unit tests and end-to-end tests on real vLLM
# Both set themselves up in .venv the first time. They need Python 3.11 to 3.14, make and pip.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-full bench environment clean

demo: environment
	@$(RUN) -m dev.demo

test: environment
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check -q .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(RUN) -m pytest -m "not full"

test-full: test
	@$(RUN) -m pytest -m full

bench: environment
	@$(RUN) -m benchmarks.overhead

environment:
	@$(PYTHON) dev/environment.py $(VENV)

clean:
	rm -rf $(VENV) .cache
