# Everything a newcomer types. Each target sets itself up: a virtual environment in .venv, pinned
# packages and, for the simulator, software OpenGL from the system's packages.

PYTHON ?= python3
VENV := .venv
RUN := runs/demo
BIN := $(VENV)/bin
# Folders of videos or of RLDS to mix in as action-free data: DEMO_VIDEO=DIR[,DIR]
DEMO_VIDEO ?=
# Such as --episodes=10 --steps=20 --rollouts=1, to see the road in minutes
DEMO_FLAGS ?=

# Folder of a checkout of dlimp, to compare with it live as well: DLIMP=DIR
DLIMP ?=
TENSORFLOW_TESTS := tests/data_pipelines/open_x tests/data_pipelines/sources/test_dlimp_dataset.py \
	tests/data_pipelines/sources/test_rlds.py tests/data_pipelines/store/test_export.py

.PHONY: demo test test-docs test-fast test-beam test-gcs test-tensorflow lint setup clean

demo: setup
	$(BIN)/python launch/demo.py --output=$(RUN) --video="$(DEMO_VIDEO)" $(DEMO_FLAGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Of the tests, those that type the blocks of README.md and docs/, at reduced size
test-docs: setup
	$(BIN)/python -m pytest tests/test_docs.py

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Conversion through Apache Beam, whose direct runner wants an environment of its own
test-beam:
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-beam.txt
	PYTHONPATH=.:rollout $(VENV)-beam/bin/python -m pytest tests/data_pipelines/store/test_beam.py

# Reading and writing beside the real library, in an environment of its own.
test-tensorflow: $(VENV)-tensorflow/setup.json
	CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH="$(DLIMP)" \
		$(VENV)-tensorflow/bin/python -m pytest $(TENSORFLOW_TESTS)

# Runs and bundles in a bucket: a server of the GCS JSON API, without calls of the newest buckets.
test-gcs: $(VENV)-gcs/setup.json
	GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false JAX_PLATFORMS=cpu \
		$(VENV)-gcs/bin/python -m pytest tests/defi_jax/export/test_gcs.py \
		tests/defi_jax/training/test_bucket.py

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

setup: $(VENV)/setup.json

$(VENV)/setup.json: requirements.txt requirements-dev.txt pyproject.toml rollout/pyproject.toml launch/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash launch/setup.sh

$(VENV)-%/setup.json: requirements-%.txt requirements.txt requirements-dev.txt launch/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV)-$* EXTRA=requirements-$*.txt bash launch/setup.sh

clean:
	rm -rf $(VENV) $(VENV)-beam $(VENV)-gcs $(VENV)-tensorflow runs
