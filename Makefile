# Two commands do everything, set-up included: `make quickstart` and `make test`.
PYTHON ?= python3
SEED ?= 0
RUN ?= runs/quickstart
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache

.PHONY: quickstart test test-long test-plan test-peers test-weights lint

quickstart: .venv/installed
	.venv/bin/grpojax sft configs/quickstart.py --seed $(SEED) --workdir $(RUN)/cold_start
	.venv/bin/grpojax train configs/quickstart.py --seed $(SEED) --workdir $(RUN)/grpo --init $(RUN)/cold_start

test: .venv/installed-dev lint
	.venv/bin/pytest -n 2

test-long: .venv/installed-dev
	.venv/bin/pytest -m long

# Needs `pip install '.[plan]'`: compiles for TPUs without having one.
test-plan: .venv/installed-dev
	.venv/bin/pytest -o addopts="" -s tests/pods

# Both need `pip install '.[baselines]'`; the second also `grpojax import smollm2-135m`.
test-peers: .venv/installed-dev
	.venv/bin/pytest -o addopts="" -W ignore::FutureWarning tests/peers/test_peers.py

test-weights: .venv/installed-dev
	.venv/bin/pytest -o addopts="" -s -W ignore::FutureWarning tests/peers/test_weights.py

lint: .venv/installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed
