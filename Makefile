# From a fresh clone: `make demo` runs the demo study, `make test` runs every check. Both make the environment first.
VENV ?= .venv
PYTHON ?= python3
READY = $(VENV)/ready
READY_GPU = $(VENV)/ready-gpu
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/scripts

.PHONY: demo smoke rehearse test lint unit workflow test-cluster test-faults test-container test-browser gpu-bundle containers env env-gpu lock schema reruns gaps

demo: $(READY)
	snakemake --quiet rules
	python scripts/summarize_run.py --study results/demo --benchmarks benchmarks/demo

smoke: $(READY)
	snakemake --quiet rules --configfile config/smoke.yaml
	python scripts/summarize_run.py --study results/smoke --benchmarks benchmarks/smoke

rehearse: $(READY)
	snakemake --quiet rules --configfile config/paper.yaml config/rehearsal.yaml
	python scripts/summarize_run.py --study results/rehearsal --benchmarks benchmarks/rehearsal

test: lint unit workflow test-faults

lint: $(READY)
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check Snakefile rules
	snakemake --lint

unit: $(READY)
	pytest tests/unit --numprocesses 2 --dist loadfile

workflow: $(READY)
	pytest tests/workflow

# Starts SLURM on this machine, which takes Debian or Ubuntu and root, and stops it.
test-cluster: $(READY)
	trap tests/cluster/stop.sh EXIT; tests/cluster/start.sh && pytest tests/cluster

# Kills, fills the disk, sets the clock: docs/faults.md. The full disk takes root.
test-faults: $(READY)
	pytest tests/faults

# Unpacks Apptainer and builds images for the CPU, which takes Debian and root; nothing of it stays running.
test-container: $(READY)
	tests/container/run.sh

# What `snakemake --sdm apptainer` runs in; takes Apptainer.
containers:
	containers/build.sh

# Installs Chromium with apt where it is missing, which takes Debian and root; its driver goes into a folder of its own.
test-browser: $(READY)
	tests/browser/install.sh && pytest tests/browser

# What a machine with a GPU and without a network needs for its checks: tests/gpu/README.md.
gpu-bundle: $(READY)
	python -m tests.gpu.pack --out results/gpu

env: $(READY)

# torch comes first and from where pip is told to look, since its build (CPU or CUDA) is the machine's.
$(READY): envs/requirements.lock envs/torch.txt
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else 'error: the lock is for Python 3.11; say: make PYTHON=python3.11')"
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r envs/torch.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r envs/requirements.lock
	touch $@

# On a machine with GPUs: fused kernels beside the environment. They run on a GPU alone, and take a C compiler there.
env-gpu: $(READY_GPU)

$(READY_GPU): $(READY) envs/gpu.lock
	@$(VENV)/bin/python -c "import sys, torch; sys.exit(None if torch.version.cuda else 'error: this torch is a build for the CPU; have pip find its CUDA build, remove $(VENV) and say: make env-gpu')"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r envs/gpu.lock
	$(VENV)/bin/pip check --disable-pip-version-check
	touch $@

# uv must reach the CPU build of torch (UV_FIND_LINKS or UV_TORCH_BACKEND=cpu): the CUDA build would lock its drivers.
lock:
	uv pip compile envs/requirements.in --python-version 3.11 --generate-hashes --no-emit-package torch \
		--no-emit-find-links --no-header --no-annotate --quiet --output-file envs/requirements.lock
	uv pip compile envs/gpu.in --no-deps --python-version 3.11 --generate-hashes \
		--no-emit-find-links --no-header --no-annotate --quiet --output-file envs/gpu.lock
	python scripts/make_conda_file.py --pins envs/torch.txt envs/requirements.lock --out envs/mergetime.yaml

schema: $(READY)
	python -c "from mergetime.config.reading import schema; print(schema(), end='')" > config/schema.json

reruns: $(READY)
	python -m tests.unit.reruns > docs/reruns.md

gaps: $(READY)
	python -m tests.unit.gaps > docs/exactness.md
