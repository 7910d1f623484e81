#!/usr/bin/env bash
# The same on GKE, by xpk: launch/tpu/xpk.sh ACTION --cluster=NAME --zone=ZONE [--dry_run] ...
#
#   create --type=v5p-128 [--num_slices=2] [--capacity=on-demand|spot|reservation=NAME]
#   build  --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/defi-jax:TAG   this checkout, pushed
#   run    --name=RUN --type=v5p-128 [--num_slices=2] --image=IMAGE -- COMMAND
#          the same with another --name resumes; pods that are lost are started again by themselves
#   watch  --name=RUN                                the state, then the log as it grows
#   stop   --name=RUN                                training saves, then ends
#   delete                                           the cluster
#
# --dry_run prints the commands instead. --project=PROJECT where it is not gcloud's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/common.sh
. launch/common.sh

GRACE_SECONDS=300 # to save, after SIGTERM
RESTARTS=20

create() {
  need type
  run xpk cluster create "${where[@]}" "--tpu-type=$type" "--num-slices=$num_slices" "--$capacity"
}

build() {
  need image
  run docker build --build-arg ACCELERATOR=tpu --tag "$image" .
  run docker push "$image"
}

start() {
  need name type image && need_command
  run xpk workload create "${where[@]}" "--workload=$name" "--tpu-type=$type" \
    "--num-slices=$num_slices" "--docker-image=$image" "--max-restarts=$RESTARTS" \
    "--termination-grace-period-seconds=$GRACE_SECONDS" "--command=$(quote "${command[@]}")"
}

watch() {
  need name
  run xpk workload list "${where[@]}" "--filter-by-job=$name"
  run kubectl logs --follow --prefix --tail=40 --max-log-requests=100 \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

stop() {
  need name
  run xpk workload delete "${where[@]}" "--workload=$name"
}

action=${1:-}
[ $# = 0 ] || shift
cluster='' zone='' name='' type='' num_slices=1 capacity=on-demand image='' project=''
parse "cluster zone project name type num_slices capacity image" "$@"
case $action in
  build) ;;
  create | run | watch | stop | delete) need cluster zone ;;
  *) fail "unknown action '$action': $0; give create, build, run, watch, stop or delete" ;;
esac
where=("--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"})
case $action in
  run) start ;;
  delete) run xpk cluster delete "${where[@]}" ;;
  *) "$action" ;;
esac
