#!/usr/bin/env bash
# Several processes on this machine that train together, on simulated CPU devices and over the loopback interface: to
# try what a cluster will do before it is booked.
#   bash launch/local.sh [--dry-run] --config=configs/demo.py --workdir=runs/local [--config.field=value ...]
# PROCESSES (2) and DEVICES (4, of each process) say how many; PORT is where they meet (a random one).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"
source "$root/launch/env.sh" cpu
processes=${PROCESSES:-2} devices=${DEVICES:-4} port=${PORT:-$((20000 + RANDOM % 10000))}
workdir=$(workdir_of "$@")
arguments=("$@")

start_process() {
  # exec: a signal to this job then reaches Python, not a shell in between.
  local command=("${train[@]}" "${arguments[@]}" --config.cpu_devices="$devices" --coordinator="127.0.0.1:$port"
                 --processes="$processes" --process="$1")
  if [ "$dry_run" ]; then show "${command[@]}"; else exec "${command[@]}"; fi
}

cd "$root"
restarting "$workdir" together "$processes"
