# GLIPv2 on Ray. `make demo` runs the whole way on a drawn miniature world, `make test` all tests, `make lint` all checks.
# A fresh machine needs Python 3.11 to 3.13, make and git, nothing else.

PYTHON ?= python3
UV := .tools/uv/bin/uv
UV_VERSION := 0.13.8
BIN := .venv/bin
OUT ?= $(CURDIR)/runs/demo

# Ray starts a process per worker; without compiled bytecode each of them compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE := 1

.PHONY: setup demo cluster test test-slow chaos lint bench lock clean
setup: .venv/.ready

$(UV):
	$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .tools/pip
	$$([ -x .tools/pip/bin/python ] && echo .tools/pip/bin/python || echo $(PYTHON)) -m pip install --quiet \
	  --disable-pip-version-check --root-user-action ignore --upgrade --target .tools/uv uv==$(UV_VERSION)

.venv/.ready: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo demo --out $(OUT)

# A cluster with Ray's own autoscaler on this machine; Ctrl-C ends it. See cluster/README.md.
cluster: setup
	@$(BIN)/python -m cluster.local $(ARGS)

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not cluster" -n 2 --dist loadfile --no-loadscope-reorder --durations=25
	$(BIN)/python -m pytest -m "cluster and not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# What takes minutes each: nodes lost under a training, an ablation in pieces. One after the other.
test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu and not chaos" --timeout 900 --durations=0

# Every fault at every stage; make test runs a few. CHAOS_SEED=n strikes at other moments.
chaos: setup
	CHAOS_TABLE=$(CURDIR)/runs/chaos/table $(BIN)/python -m pytest tests/chaos -m chaos --durations=0

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.bench --out $(CURDIR)/runs/bench

# Names, versions and hashes only: no addresses of any package index.
lock: $(UV)
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
