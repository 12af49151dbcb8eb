# What the launch scripts share. Source it, without arguments: it takes --dry-run from the front of the script's own.
# RESTARTS (20) is how often a run that was stopped and saved (status 75), or hung, is started again.

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi
restarts=${RESTARTS:-20}
[ -d "${MAMMOCLIP_VENV:-$root/.venv}/bin" ] && export PATH="${MAMMOCLIP_VENV:-$root/.venv}/bin:$PATH"
train=(python -m mammoclip_jax.pretrain)
environment=() children=() stopping=

# Where the run is, by the arguments of `pretrain`.
workdir_of() {
  local argument
  for argument in "$@"; do
    case $argument in --workdir=*) echo "${argument#--workdir=}"; return ;; esac
  done
  echo "--workdir=DIR is missing: the folder of the run, on a disk that all hosts share" >&2
  return 2
}

# Prints a command as it could be typed, with the variables of launch/env.sh on a line before it.
show() {
  local name
  for name in "${environment[@]}"; do printf '%s=%q ' "$name" "${!name-}"; done
  [ ${#environment[@]} = 0 ] || printf '\\\n  '
  printf '%q ' "$@"
  echo
}

# Runs a command, or with --dry-run prints it.
run() {
  if [ "$dry_run" ]; then show "$@"; else "$@"; fi
}

# Runs `start_process I` for I = 0 ... $1 - 1 together. Status: 75 if any of them says so, else the lowest that is not 0.
# When one fails the others are ended: they could only wait for it.
together() {
  local i child one status=0
  if [ "$dry_run" ]; then
    for ((i = 0; i < $1; i++)); do start_process "$i"; done
    return
  fi
  local count=$1
  children=()
  for ((i = 0; i < count; i++)); do start_process "$i" & children+=($!); done
  set -- "${children[@]}"
  while [ $# -gt 0 ]; do
    for child in "$@"; do
      shift
      if kill -0 "$child" 2>/dev/null; then set -- "$@" "$child"; continue; fi
      one=0
      wait "$child" || one=$?
      case $one in
        0) ;;
        75) status=75 ;;
        *)
          [ $status = 75 ] || { [ $status != 0 ] && [ $status -lt $one ]; } || status=$one
          [ $# = 0 ] || kill -KILL "$@" 2>/dev/null || true
          ;;
      esac
    done
    [ $# = 0 ] || sleep 1
  done
  return $status
}

# Runs `$2 ...` again, at most `restarts` times, while it ends because it was stopped and has saved, or because it hung
# (pretrain then leaves hung_step_N.txt in the workdir $1). A signal to the script itself stops the run, and for good.
restarting() {
  local workdir=$1 attempt status since
  shift
  trap 'stopping=yes; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
  for ((attempt = 1; ; attempt++)); do
    since=$(mktemp)
    status=0
    "$@" || status=$?
    [ $status = 75 ] || ! hung "$workdir" "$since" || status=75
    rm -f "$since"
    if [ $status != 75 ] || [ "$stopping" ] || [ $attempt -gt "$restarts" ]; then return $status; fi
    echo "stopped, and goes on: restart $attempt of $restarts" >&2
  done
}

# Whether the watchdog has written its file since $2 was made.
hung() {
  [ -n "$(find "$1" -maxdepth 1 -name 'hung_step_*.txt' -newer "$2" 2>/dev/null)" ]
}
