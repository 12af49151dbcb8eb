#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, from a machine that has gcloud and may reach it:
#   TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh [--dry-run] --config=configs/mammoclip_b5.py --workdir=/shared/runs/b5 [...]
# The checkout lies in DIRECTORY (mammoclip_jax, in the home folder) on every host, with the .venv that
# `source launch/install.sh tpu` made; --workdir and the data are on a disk that all hosts share. SSH_FLAGS are further options of gcloud, as --internal-ip.
# When a spot slice is taken away the processes save; call again once it, or one of another size, is back.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"

# On a host of the slice (below): restarts happen there, since all hosts stop at the same step and meet again.
if [ "${1:-}" = --on-host ]; then
  shift
  source "$root/launch/env.sh" tpu
  arguments=("$@")
  start_process() { exec "${train[@]}" "${arguments[@]}"; }
  cd "$root"
  restarting "$(workdir_of "$@")" together 1
  exit
fi

workdir_of "$@" > /dev/null
: "${TPU:?the name of the slice: TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh ...}" "${ZONE:?its zone}"
printf -v on_host '%q ' cd "${DIRECTORY:-mammoclip_jax}"
printf -v on_host '%s&& RESTARTS=%q exec bash launch/tpu_pod.sh --on-host' "$on_host" "$restarts"
printf -v quoted ' %q' "$@"
read -ra ssh_flags <<< "${SSH_FLAGS:-}"
if [ "$dry_run" ]; then
  ( source "$root/launch/env.sh" tpu; echo "on every host of $TPU:"; show "${train[@]}" "$@" )
fi
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all "${ssh_flags[@]}" --command="$on_host$quoted"
