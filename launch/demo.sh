#!/usr/bin/env bash
# The whole main job on phantom exams and eight real films: installs, prepares, pretrains, evaluates, explains.
#   bash launch/demo.sh [WORKDIR] [--config.field=value ...]
# Ends with a table, the path of report.html and the command that opens a page to look through the exams. Stopped, it goes on
# where it was when called again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo

workdir=$root/runs/demo
case "${1:-}" in "" | --*) ;; *) workdir=$(realpath -m "$1"); shift ;; esac
cd "$root"
# Huge pages for the large arrays of a step.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir="$workdir" "$@"
printf 'look through the exams: %q -m mammoclip_jax.view %q --dataset=%q\n' "$(command -v python)" "$workdir" "$workdir/data/phantom"
