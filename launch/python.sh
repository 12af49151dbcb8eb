# The Pythons that the package runs on, and how one is found. Source it.

pythons="3.11 3.12 3.13"    # the first is preferred: with it all tests run for every commit

# Prints the version of the interpreter $1, such as 3.12; fails where it does not start (pyenv's shim of a version that
# is not chosen) or cannot make virtual environments (Debian without python3-venv).
version_of() {
  "$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Prints the first interpreter of a version in "$@" that is here: $PYTHON, a command on the PATH, or one of pyenv's.
find_python() {
  local version candidate pyenv
  pyenv=${PYENV_ROOT:-$(pyenv root 2>/dev/null || true)}
  for version in "$@"; do
    for candidate in ${PYTHON:+"$PYTHON"} "python$version" python3 python "$pyenv/versions/$version".*/bin/python; do
      [ "$(version_of "$candidate")" != "$version" ] || { command -v "$candidate"; return; }
    done
  done
  return 1
}
