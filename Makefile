# Every chore is one word. On a bare machine with Python 3.11 or newer, `make run` is all it takes.
.DEFAULT_GOAL := help
.PHONY: help run test lint audit worker files web wyoming flower redis model doctor bench bench-engine \
	bench-gpu bench-load bench-slices bench-pipeline bench-kills bench-streams bench-burst \
	bench-lengths bench-cores bench-novel simulate voice judge clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
ALL := .venv/.installed-all
VOICE := .venv/.installed-training
TORCH := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)
CPU_WHEELS := https://download.pytorch.org/whl/cpu
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## list the chores
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-15s %s\n", $$1, $$2}'

# Without an NVIDIA driver the CPU build of PyTorch saves gigabytes; where its index cannot be
# reached, the ordinary index serves as well.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv (once, a few minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@command -v nvidia-smi >/dev/null || $(BIN)/pip install --quiet --retries 0 --timeout 20 \
		--index-url $(CPU_WHEELS) '$(TORCH)' 2>/dev/null || true
	@$(BIN)/pip install --quiet --editable '.[run]'
	@touch $@

# What developing needs beyond running: tests, linters, benchmarks.
$(ALL): $(READY)
	@$(BIN)/pip install --quiet --editable '.[all]'
	@touch $@

# What training and judging the built-in voice need; espeak-ng and word lists come from Debian.
$(VOICE): $(READY)
	@$(BIN)/pip install --quiet --editable '.[training]'
	@touch $@

run: $(READY)  ## Redis, worker, files worker and web until Ctrl-C
	@exec $(BIN)/python -m app.run $(ARGS)

test: $(ALL)  ## the whole test suite, against real processes (ARGS='-k word' for a part)
	$(BIN)/python -m pytest $(ARGS)

lint: $(ALL)  ## ruff, mypy, and once a day the dependency audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/audit.py --daily

audit: $(ALL)  ## known vulnerabilities in what is installed
	$(BIN)/python scripts/audit.py

# One process each, as the Procfile says, against the Redis at SUPERTONIC_REDIS_URL.
worker files web wyoming flower redis: $(READY)
	@eval "$$(sed -n 's/^$@: *//p' Procfile)"

worker:  ## one batching worker
files:  ## the worker for files and exports
web:  ## the web alone
wyoming:  ## the server for Home Assistant, at port 10200
flower:  ## Flower's view of the workers
redis:  ## a Redis at port 6379 (REDIS_PORT)

model: $(READY)  ## download the Supertonic 2 weights and voices
	@$(BIN)/python -m supertonic download

doctor: $(READY)  ## what is installed, which device, do the weights load
	@$(BIN)/python -m supertonic doctor

bench: bench-engine bench-cores bench-load bench-lengths bench-slices bench-pipeline bench-kills bench-streams bench-burst bench-novel bench-service  ## all benchmarks but those of a GPU and by the clock

bench-engine: $(ALL)  ## model speed beside ONNX Runtime, no queue (some six minutes)
	$(BIN)/python -m benchmarks.bench_engine $(ARGS)

bench-gpu: $(READY)  ## the engine on a GPU: sound per second, latency, share of the matrix peak
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

bench-slices: $(ALL)  ## first sound with and without slices, 1 and 50 listeners
	$(BIN)/python -m benchmarks.bench_slices $(ARGS)

bench-load: $(ALL)  ## how soon a worker is ready, and its memory, full-size weights
	$(BIN)/python -m benchmarks.bench_load $(ARGS)

bench-cores: $(ALL)  ## what all cores make together, beside one and beside a process each
	$(BIN)/python -m benchmarks.bench_cores $(ARGS)

bench-lengths: $(ALL)  ## what a worker gathers that meets every length of text
	$(BIN)/python -m benchmarks.bench_lengths $(ARGS)

bench-pipeline: $(ALL)  ## what the queue and the web cost, null engine
	$(BIN)/python -m benchmarks.bench_pipeline $(ARGS)

bench-kills: $(ALL)  ## what SIGKILLs cost over 50,000 messages, null engine
	$(BIN)/python -m benchmarks.bench_kills $(ARGS)

bench-novel: $(ALL)  ## a million characters as one long job, null engine
	$(BIN)/python -m benchmarks.bench_novel $(ARGS)

bench-streams: $(ALL)  ## a hundred listeners at once, built-in voice
	$(BIN)/python -m benchmarks.bench_streams $(ARGS)

bench-burst: $(ALL)  ## one stream, then twenty at once, on a full-size model
	$(BIN)/python -m benchmarks.bench_burst $(ARGS)

simulate: $(ALL)  ## the schedule by a clock of its own: load, bursts, many workers
	$(BIN)/python -m benchmarks.simulate $(ARGS)

bench-service: $(ALL)  ## what listeners get under load, beside an in-process batcher
	$(BIN)/python -m benchmarks.bench_service $(ARGS)

# Each stage can be run alone, goes on where it was broken off, and leaves finished ones as they are.
STAGES := corpus spelling decoder durations text_to_latent recogniser export

voice: $(VOICE) $(addprefix voice-,$(STAGES))  ## train the built-in voice again, all stages (hours)

$(addprefix voice-,$(STAGES)): voice-%: $(VOICE)
	$(BIN)/python -m training.$* $(ARGS)

judge: $(VOICE)  ## measure the built-in voice against its teacher, one table
	@$(BIN)/python -m training.judge $(ARGS)

clean:  ## remove the environment and caches; data and models stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
