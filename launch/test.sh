#!/usr/bin/env bash
# Installs the test extras and runs the tests.
#   bash launch/test.sh [--parity] [--slow] [pytest arguments]
# --parity adds PyTorch and compares with it live; without it the same tests use the small outputs in tests/golden.
# -n 0 runs all in one process, for --pdb and for machines with little memory.
# --slow adds the tests that take more than ten seconds each.
set -euo pipefail
extras=test
parity="not parity" slow="not slow"
arguments=()
for argument in "$@"; do
  case $argument in
    --parity) extras=test,parity parity= ;;
    --slow) slow= ;;
    *) arguments+=("$argument") ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "$extras"
cd "$root"
marks="$parity${parity:+${slow:+ and }}$slow"
# A process for each core, up to four: each holds eight simulated devices. A file stays whole, its fixtures are made once.
exec python -m pytest -n auto --maxprocesses=4 --dist=loadfile ${marks:+-m "$marks"} ${arguments[@]+"${arguments[@]}"}
