#!/usr/bin/env bash
# What launch/tpu/pod.sh and launch/gpu/ssh.sh do on each machine, in the repository's copy there.
#
#   launch/worker.sh setup COMMIT EXTRA    checks out a commit and installs what it and the files of
#                                          the list EXTRA need
#   launch/worker.sh start LOGS COMMAND... in the background, into run.log; one at a time. At the end
#                                          the log is copied to LOGS/HOST.log, if LOGS is not empty
#   launch/worker.sh stop                  SIGTERM: training saves, on all machines the same step
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
. launch/common.sh

setup() {
  git fetch --quiet origin && git checkout --quiet --detach "$1"
  local python=python3
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    # TPU VMs have Ubuntu 22.04, whose Python is 3.10.
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv python install 3.11
    python=$(~/.local/bin/uv python find 3.11)
  fi
  make --always-make setup PYTHON="$python" EXTRA="$2"
}

start() {
  local logs=$1
  shift
  exec 9>.run.lock
  flock --nonblock 9 || fail "a command runs here already: $(hostname); stop it first"
  # shellcheck disable=SC2016
  setsid nohup bash -c '
    . .venv/bin/activate
    "${@:2}" & pid=$!
    echo $pid >.run.pid
    wait $pid; code=$?
    echo "$(date -u +%FT%TZ) $(hostname) ended with $code"
    [ -z "$1" ] || gcloud storage cp run.log "$1/$(hostname).log"
  ' worker "$logs" "$@" >>run.log 2>&1 </dev/null &
}

stop() {
  kill -TERM "$(cat .run.pid)" 2>/dev/null || fail "no command runs: $(hostname); nothing to stop"
}

case ${1:-} in
  setup | start | stop) "$@" ;;
  *) fail "unknown action '${1:-}': $0; give setup, start or stop" ;;
esac
