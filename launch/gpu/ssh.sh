#!/usr/bin/env bash
# Machines with GPUs, by ssh: launch/gpu/ssh.sh ACTION --hosts=HOST,HOST,... [--dry_run] ...
#
#   setup --repository=URL --commit=COMMIT    on all; again for another commit
#   run   [--port=8476] -- COMMAND           on all; resumes, if it trained before
#   watch [--host=HOST]                      the log as it grows, of the first host
#   stop                                     training saves, then ends with 75
#
# The first host is the one that the others find each other by: they must reach it at that name and
# port. One process has all GPUs of its host. --dry_run prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/common.sh
. launch/common.sh

CLONE=defi-jax # the repository's copy, in the home there

setup() {
  need repository commit
  local each
  for each in "${all[@]}"; do
    run ssh "$each" "set -e
[ -d $CLONE ] || git clone --quiet $(quote "$repository") $CLONE
$CLONE/launch/worker.sh setup $(quote "$commit") 'requirements-gpu.txt requirements-gcs.txt'"
  done
}

start() {
  need_command
  local index
  for index in "${!all[@]}"; do
    run ssh "${all[$index]}" "JAX_COORDINATOR_ADDRESS=${all[0]}:$port" \
      "JAX_NUM_PROCESSES=${#all[@]}" "JAX_PROCESS_ID=$index" \
      "$CLONE/launch/worker.sh start '' $(quote "${command[@]}")"
  done
}

action=${1:-}
[ $# = 0 ] || shift
hosts='' repository='' commit='' port=8476 host=''
parse "hosts repository commit port host" "$@"
case $action in
  setup | run | watch | stop) need hosts ;;
  *) fail "unknown action '$action': $0; give setup, run, watch or stop" ;;
esac
IFS=, read -r -a all <<<"$hosts"
case $action in
  setup) setup ;;
  run) start ;;
  watch) run ssh "${host:-${all[0]}}" "tail -n 40 -F $CLONE/run.log" ;;
  stop) run ssh "${all[0]}" "$CLONE/launch/worker.sh stop" ;;
esac
