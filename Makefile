# The commands of this project. make help lists them.

PYTHON ?= python3.11
CORES ?= 1
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help environment evaluate test lint format ui lock clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

environment: $(INSTALLED) ## make .venv from the pinned packages, if it is missing or they changed

# install.sh writes the stamp when all is done; a half-made environment has none.
$(INSTALLED): envs/cpu/requirements.txt envs/cpu/torch.txt envs/cpu/install.sh
	envs/cpu/install.sh $(VENV) $(PYTHON)

evaluate: $(INSTALLED) ## run every configuration, log to MLflow, write results/report.html
	$(BIN)/snakemake --cores $(CORES) evaluate_all

test: $(INSTALLED) ## run the tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(INSTALLED) ## check style, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

format: $(INSTALLED) ## put the code in style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

ui: $(INSTALLED) ## open MLflow on this machine: http://127.0.0.1:5000
	@mkdir -p mlflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui \
		--backend-store-uri sqlite:///mlflow/mlflow.db --host 127.0.0.1 --port 5000 --workers 1

# torch and its CUDA libraries are left out: install.sh takes the CPU build (envs/cpu/torch.txt).
CUDA := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-, \
	cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver \
	cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock: $(INSTALLED) ## pin the newest packages that requirements.in allows
	$(BIN)/uv pip compile envs/cpu/requirements.in -o envs/cpu/requirements.txt --upgrade \
		--python-version 3.11 --generate-hashes --no-header --quiet \
		$(addprefix --no-emit-package ,$(CUDA))

clean: ## delete results/; MLflow's runs stay in mlflow/
	rm -rf results
