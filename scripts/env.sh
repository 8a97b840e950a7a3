# Sourced by scripts/demo, scripts/test and scripts/bench: makes .venv in the checkout and installs the project with the
# extra named in $EXTRA. Does nothing when that is already done for this pyproject.toml and constraints.txt.
# Afterwards $PYTHON is the interpreter to use. Set POTLUCK_VENV to keep the environment elsewhere.

VENV="${POTLUCK_VENV:-.venv}"

say() { printf '%s\n' "$*" >&2; }

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  say "error: no Python 3.11, 3.12 or 3.13 was found"
  say "hint: install one (Debian: apt-get install python3 python3-venv), then run this again"
  return 1
}

make_venv() {
  [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return 0
  base="$(find_python)" || return 1
  say "making a virtual environment in $VENV with $("$base" --version) …"
  rm -rf "$VENV"
  if ! "$base" -m venv "$VENV"; then
    say "error: could not make a virtual environment"
    say "hint: Debian and Ubuntu keep that in a package of its own: apt-get install python3-venv"
    return 1
  fi
}

install() {
  wanted="$(cat pyproject.toml constraints.txt | cksum)"
  stamp="$VENV/.installed-$EXTRA"
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
  say "installing potluck[$EXTRA]: some minutes the first time (torch, transformers, hivemind: about 1.5 GB) …"
  quiet=--quiet
  [ -t 2 ] && quiet=
  if ! "$PYTHON" -m pip install $quiet --disable-pip-version-check -c constraints.txt -e ".[$EXTRA]" >&2; then
    say "error: the installation failed; what pip said stands above"
    say "hint: check the network and the free disk space (2 GB), then run this again; it goes on where it stopped"
    return 1
  fi
  printf '%s' "$wanted" >"$stamp"
}

make_venv || exit 2
PYTHON="$VENV/bin/python"
install || exit 2
