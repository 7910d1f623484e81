# One image for TPUs or for GPUs:
#   docker build --build-arg ACCELERATOR=tpu --tag defi-jax .      (or gpu; --build-arg PYTHON=3.13
#                                                                  takes the jax of today)
#   docker run --privileged --net=host defi-jax python launch/train.py ...      on a TPU VM
#   docker run --gpus=all --net=host --shm-size=16g defi-jax python launch/train.py ...
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG ACCELERATOR=tpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git libosmesa6 libgl1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /defi-jax
# The packages change seldom: the code below, which changes often, keeps their layer.
COPY requirements.txt requirements-dev.txt requirements-gcs.txt requirements-tpu.txt requirements-gpu.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-dev.txt -r requirements-gcs.txt \
    -r requirements-${ACCELERATOR}.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . -e rollout
CMD ["python", "launch/train.py", "--help"]
