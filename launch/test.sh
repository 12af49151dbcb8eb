#!/usr/bin/env bash
# Installs the test extras and runs the tests.
#   bash launch/test.sh [--parity] [--slow] [--no-quick] [pytest arguments]
# --parity adds PyTorch and compares with it live; without it the same tests use the small outputs in tests/golden.
# --slow adds the tests that are too long for every day; --no-quick leaves out those of the plain command.
# -n 0 runs all in one process, for --pdb and for machines with little memory.
set -euo pipefail
extras=test
parity="not parity" slow="not slow" quick=
kinds=(quick)
arguments=()
for argument in "$@"; do
  case $argument in
    --parity) extras=test,parity parity= kinds+=(parity) ;;
    --slow) slow= kinds+=(slow) ;;
    --no-quick) quick="(parity or slow)" kinds=("${kinds[@]:1}") ;;
    *) arguments+=("$argument") ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "$extras"
cd "$root"
marks=
for mark in "$parity" "$slow" "$quick"; do marks=$marks${marks:+${mark:+ and }}$mark; done
# A process for each core, up to four: each holds eight simulated devices. A file stays whole, its fixtures are made once.
processes=$(python -c 'import os; print(min(len(os.sched_getaffinity(0)), 4))')
python tests/budget.py "$processes" "${kinds[@]}"
exec python -m pytest -n "$processes" --dist=loadfile --no-loadscope-reorder ${marks:+-m "$marks"} \
  ${arguments[@]+"${arguments[@]}"}
