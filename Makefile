# Everything runs in .venv, which is made when it is needed and again when setup.py changes.
PYTHON ?= python3
BIN := .venv/bin
# Where a ROS distribution is sourced, its rclpy is used; elsewhere the wheels of the `ros` extra.
ifdef ROS_DISTRO
VENV_FLAGS := --system-site-packages
else
ROS := ,ros
endif

.PHONY: setup test demo bench bench-gpu lint clean

setup: .venv/.full

test: .venv/.full
	$(BIN)/python -m pytest test/

lint: .venv/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.full
	$(BIN)/python -m bench.run

# make bench-gpu WORK=/dev/shm/omni: 54 GB there at most; the engines stay, 23 GB. Without WORK they are made in bench_output and deleted.
bench-gpu: .venv/.full
	$(BIN)/python -m bench.gpu $(if $(WORK),--work $(WORK))

demo: .venv/.light
	$(BIN)/python -m demo.run

.venv/.created:
	$(PYTHON) -m venv $(VENV_FLAGS) .venv
	$(BIN)/python -m pip install -qq --upgrade pip setuptools
	touch $@

# Enough to make engines and run the node: no torch.
.venv/.light: setup.py | .venv/.created
	@echo "installing the runtime into .venv (a minute or two)"
	$(BIN)/python -m pip install -qq --editable ".[vad,offline,demo$(ROS)]"
	touch $@

# And transformers, which the tests and benchmarks compare with. torchvision comes without its dependencies, since it
# asks for another build of torch.
.venv/.full: .venv/.light
	@echo "installing torch and transformers into .venv (several minutes on a slow network)"
	$(BIN)/python -m pip install -qq --editable ".[test,quantize,tensorrt,cuda]"
	$(BIN)/python -m pip install -qq --no-deps torchvision==0.28.0
	touch $@

clean:
	rm -rf .venv build install log demo_output *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
