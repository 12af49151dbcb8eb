#!/usr/bin/env bash
# Trains on all GPUs of this machine.
#   bash launch/gpu_node.sh [--dry-run] --config=configs/mammoclip_b5.py --workdir=runs/b5 [--config.field=value ...]
# One process drives them all, unless PROCESSES says how many GPUs there are: then each has a process of its own, with
# its own threads that decode images. Worth it where `data wait` on the progress line is not near zero.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"
source "$root/launch/env.sh" gpu
processes=${PROCESSES:-1} port=${PORT:-$((20000 + RANDOM % 10000))}
workdir=$(workdir_of "$@")
arguments=("$@")

start_process() {
  local command=("${train[@]}" "${arguments[@]}")
  if [ "$processes" -gt 1 ]; then
    # Process I sees GPU I alone; the others are its peers.
    export JAX_LOCAL_DEVICE_IDS=$1
    local environment=("${environment[@]}" JAX_LOCAL_DEVICE_IDS)
    command+=(--coordinator="127.0.0.1:$port" --processes="$processes" --process="$1")
  fi
  if [ "$dry_run" ]; then show "${command[@]}"; else exec "${command[@]}"; fi
}

cd "$root"
restarting "$workdir" together "$processes"
