#!/usr/bin/env bash
# TPU VMs by queued resources: launch/tpu/pod.sh ACTION --name=NAME --zone=ZONE [--dry_run] ...
#
#   create --type=v5p-128 [--num_slices=2] [--capacity=spot|guaranteed|reserved]
#          [--runtime=VERSION] [--service_account=MAIL]
#   setup  --repository=URL --commit=COMMIT          on all workers; again for another commit
#   each   -- COMMAND                              on all workers, to its end; in the copy there
#   run    [--logs=gs://BUCKET/DIR] -- COMMAND      on all workers; resumes, if it trained before
#   watch  [--worker=0]                             the state, then the log as it grows
#   stop                                            training saves, then ends with 75
#   delete                                          asks, then ends and deletes everything
#
# --dry_run prints the commands instead. --project=PROJECT where it is not gcloud's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/common.sh
. launch/common.sh

RESOURCES=(gcloud compute tpus queued-resources)
CLONE=defi-jax # the repository's copy, in each worker's home
PACKAGES="git make python3-pip python3-venv libosmesa6 libgl1"
EXTRA="requirements-tpu.txt requirements-gcs.txt"

create() {
  need type
  if [ -z "$runtime" ]; then
    case $type in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) fail "no runtime version known for type $type: $0; give --runtime" ;;
    esac
  fi
  local nodes=("--node-id=$name")
  [ "$num_slices" = 1 ] || nodes=("--node-count=$num_slices" "--node-prefix=$name")
  run "${RESOURCES[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" \
    "--runtime-version=$runtime" "${nodes[@]}" ${capacity:+"--$capacity"} \
    ${service_account:+"--service-account=$service_account"} \
    --scopes=https://www.googleapis.com/auth/cloud-platform
}

setup() {
  need repository commit
  on all "set -e; sudo apt-get -qq update; sudo apt-get -qq install -y $PACKAGES
[ -d $CLONE ] || git clone --quiet $(quote "$repository") $CLONE
$CLONE/launch/worker.sh setup $(quote "$commit") '$EXTRA'"
}

each() {
  need_command
  on all "cd $CLONE && $(quote "${command[@]}")"
}

start() {
  need_command
  on all "$CLONE/launch/worker.sh start $(quote "$logs" "${command[@]}")"
}

watch() {
  run "${RESOURCES[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
  on "$worker" "tail -n 40 -F $CLONE/run.log"
}

# on WORKER COMMAND : on one worker of the first slice, or on all of all slices
on() {
  local node=0
  [ "$1" != all ] || node=all
  run "${RESOURCES[@]}" ssh "$name" "${where[@]}" "--node=$node" "--worker=$1" "--command=$2"
}

action=${1:-}
[ $# = 0 ] || shift
name='' zone='' type='' num_slices=1 capacity='' runtime='' service_account='' project=''
repository='' commit='' logs='' worker=0
parse "name zone project type num_slices capacity runtime service_account repository commit logs worker" "$@"
case $action in
  create | setup | each | run | watch | stop | delete) need name zone ;;
  *) fail "unknown action '$action': $0; give create, setup, each, run, watch, stop or delete" ;;
esac
where=("--zone=$zone" ${project:+"--project=$project"})
case $action in
  run) start ;;
  stop) on 0 "$CLONE/launch/worker.sh stop" ;;
  delete) run "${RESOURCES[@]}" delete "$name" "${where[@]}" --force ;;
  *) "$action" ;;
esac
