#!/usr/bin/env bash
# Nodes with GPUs, by Slurm, from the repository's root on a disk that all nodes see:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/gpu/slurm.sh python launch/train.py ...
#
# One process a node, which has all its GPUs. The same command resumes. Before the time limit and
# before a preemption SIGTERM comes: training saves and ends with 75, and the job is queued again.
# As 'launch/gpu/slurm.sh --dry_run COMMAND', without sbatch, it prints what the job would run.
#SBATCH --job-name=defi-jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}" # sbatch runs a copy of this file, from elsewhere
# shellcheck source=launch/common.sh
. launch/common.sh

# On each node. Else jax would give each process of a node one GPU.
# shellcheck disable=SC2016
NODE='
. .venv/bin/activate
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS=$host:$((20000 + SLURM_JOB_ID % 10000))
export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
export JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((SLURM_GPUS_ON_NODE - 1)))
exec "$@"
'
dry_run=''
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
[ $# -gt 0 ] || fail "no command to run: $0; give it, as 'python launch/train.py ...'"
code=0
run srun --label --kill-on-bad-exit=0 bash -c "$NODE" node "$@" || code=$?
[ "$code" != 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
