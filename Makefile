# Targets run in a virtual environment of the repository's own (.venv), made on first use.
#   make demo    build the two small checkpoints of tests/data, verify both engines, print generated text
#   make test    lint, then the tests: what CI runs
#   make bench   the comparisons of benchmarks/, with the peers in an environment of their own
#   make gpu     everything that needs a GPU, in stages (docs/on-a-gpu.md); make gpu DRY=--dry without one

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PEERS := .venv-peers
OPENVINO := .venv-openvino
JOBS := 2
DEMOS := demo-qwen2-tiny demo-qwen2-moe-tiny

.PHONY: venv kernels demo $(DEMOS) test lint format pytest bench gpu clean

venv: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,rtx,server,dev]'
	touch $@

$(PEERS)/.stamp $(OPENVINO)/.stamp: .venv-%/.stamp: benchmarks/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

demo: $(DEMOS)

# The CPU kernels, again only what has changed; where pip found no compiler, it has said so.
kernels: $(STAMP)
	@$(BIN)/python -m q2export.plugins.kernel_build cpu || grep '^none' plugins/lib/libq2export_onnxruntime.txt

$(DEMOS): demo-%: kernels
	$(BIN)/q2export build --model tests/data/checkpoints/$* --profile cpu --output demo/$* --overwrite
	$(BIN)/q2export verify demo/$* --model tests/data/checkpoints/$* --report demo/$*.html --json > demo/$*.json
	$(BIN)/q2export generate demo/$* --prompt 'A class definition' --max-new-tokens 60 --greedy

test: lint pytest

pytest: kernels
	$(BIN)/python -m pytest -q -n $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p q2export
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: kernels $(PEERS)/.stamp $(OPENVINO)/.stamp
	$(BIN)/python -m benchmarks

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu $(DRY)

clean:
	rm -rf $(VENV) $(PEERS) $(OPENVINO) build demo out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
