# Everything runs in .venv, which is made when it is needed and again when setup.py changes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip
# Where a ROS distribution is sourced, its rclpy is used; elsewhere the wheels of the `ros` extra.
ifdef ROS_DISTRO
VENV_FLAGS := --system-site-packages
else
ROS := ,ros
endif
# What `make test-quick` runs: something of every room, on one of the three models, without the simulated TensorRT.
QUICK := package parameters messages dialogue endpoint speech_pacer preprocess_audio preprocess_image tokenizer sampling \
	streaming conversation equality examples nvfp4
QUICK_FILES := $(wildcard $(QUICK:%=test/test_%.py))
QUICK_CASES := not tensorrt and not odd and not published

.PHONY: help setup demo test test-quick test-newest lint fuzz soak bench bench-gpu quality demo-model clean
help:
	@echo "make demo        ask the shipped model about shapes on a table: see demo_output/ afterwards"
	@echo "make test        the whole test suite against transformers"
	@echo "make test-quick  a part of it, 90 s at most"
	@echo "make lint        style and static types"
	@echo "make fuzz        attack it with damaged input, MINUTES=1 for each of its kinds"
	@echo "make soak        live with the node for MINUTES=30: nothing of it may grow"
	@echo "make test-newest make test-quick with the newest release of every dependency that setup.py allows"
	@echo "make bench       measure; make bench-gpu WORK=FOLDER   measure on a large NVIDIA GPU"
	@echo "make quality     what int4 and NVFP4 cost the shipped model: answers, voice, logits; half an hour"
	@echo "make demo-model  train the model of the demo: one or two large NVIDIA GPUs, 20 minutes on two H100"
	@echo "make setup       only install what all of them need, into .venv;   make clean   remove it"

setup: .venv/.full

demo: .venv/.light
	$(BIN)/python -m demo.run

test: .venv/.full
	@echo "the whole suite takes about a quarter of an hour on two cores; make test-quick 90 s at most"
	$(BIN)/python -m pytest -v -n 2 --dist loadfile test/

test-quick: .venv/.full
	$(BIN)/python -m pytest -v $(QUICK_FILES) -k "$(QUICK_CASES)"
	@echo "left to make test: two of the three models, TensorRT, and"
	@echo "$(sort $(notdir $(filter-out $(QUICK_FILES),$(wildcard test/test_*.py))))"

# To be run now and then: what has been released since .venv was made. Below its bounds nothing changes, see docs/dependencies.md.
test-newest: .venv/.full
	$(PIP) install -qq --upgrade --upgrade-strategy eager --editable ".[offline,demo,test$(ROS)]"
	$(PIP) list --format freeze
	$(MAKE) test-quick

lint: .venv/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# MINUTES for each of the seven kinds of input; see fuzz/run.py.
fuzz: .venv/.light
	$(BIN)/python -m fuzz.run --minutes $(or $(MINUTES),1)

# MINUTES of turns, interruptions and garbage over DDS; see bench/soak.py.
soak: .venv/.light
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),30)

bench: .venv/.full
	$(PIP) install -qq --editable ".[bench]"
	$(BIN)/python -m bench.run

# make bench-gpu WORK=/dev/shm/omni: 54 GB there at most; the engines stay, 23 GB. Without WORK they are made in bench_output and deleted.
bench-gpu: .venv/.full
	$(BIN)/python -m bench.gpu $(if $(WORK),--work $(WORK))

# See docs/quality.md and training/README.md: speech synthesisers from Debian ask the questions. make quality DEVICE=cuda on a GPU.
quality: .venv/.full
	$(PIP) install -qq --editable ".[training,listen]"
	$(BIN)/python -m training.quality $(if $(DEVICE),--device $(DEVICE))

# Trains demo/model anew; see training/README.md for the speech synthesisers that it needs.
demo-model: .venv/.full
	$(PIP) install -qq --editable ".[training]"
	$(BIN)/python -m training.run --work $(or $(WORK),/dev/shm/training) --out training_output --minutes 19 --talker_minutes 7.5 \
		--thinker=--compile --assemble demo/model

.venv/.created:
	$(PYTHON) -m venv $(VENV_FLAGS) .venv
	$(PIP) install -qq --upgrade pip setuptools
	touch $@

# Enough to make engines and run the node: no torch. Python compiles what is imported; all of it would take ten seconds more.
# The setuptools above builds this package: pip would get another one for it, six seconds more.
.venv/.light: setup.py | .venv/.created
	@echo "installing the runtime into .venv (half a minute or more, 0.6 GB)"
	$(PIP) install -qq --no-compile --no-build-isolation --editable ".[offline,demo$(ROS)]"
	touch $@

# And transformers, which the tests and benchmarks compare with. torchvision comes without its dependencies, since it may ask
# for another build of torch than the one that is here.
.venv/.full: .venv/.light
	@echo "installing torch and transformers into .venv (several minutes on a slow network)"
	@echo "PyPI's torch brings CUDA: 6.2 GB in all. With a CPU build it is 2.6 GB: make $(MAKECMDGOALS) PIP_EXTRA_INDEX_URL=URL,"
	@echo "where URL is PyTorch's index of CPU builds, which pytorch.org names under 'Get Started'"
	$(PIP) install -qq --editable ".[test,devices,quantize,tensorrt,cuda]"
	$(PIP) install -qq --no-deps torchvision==0.28.0
	touch $@

clean:
	rm -rf .venv build install log demo_output *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
