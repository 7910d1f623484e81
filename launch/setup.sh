#!/usr/bin/env bash
# Makes the virtual environment $VENV with all pinned packages, and those of the files that $EXTRA
# lists, and software OpenGL where it lacks.
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
start=$(date +%s)

fail() {
  echo "error: $1" >&2
  exit 2
}

# Installs Debian packages as root, else says in one line what to install.
need() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages: $*" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
      fail "apt-get could not install $*: install them by hand and run this again"
  else
    fail "system packages missing: run 'sudo apt-get install $*' and then this again"
  fi
}

command -v "$PYTHON" >/dev/null || need python3 python3-venv
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$PYTHON is older than Python 3.11: name a newer one, as in 'make demo PYTHON=python3.11'"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv

# Either software renderer serves the simulator.
if ! ldconfig -p | grep -qE 'libOSMesa\.so|libEGL\.so'; then
  need libosmesa6 libgl1
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
extra=()
for file in ${EXTRA:-}; do extra+=(-r "$file"); done
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  -r requirements.txt -r requirements-dev.txt ${extra[@]+"${extra[@]}"}
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
  --no-build-isolation -e . -e rollout
echo "{\"setup_seconds\": $(($(date +%s) - start))}" >"$VENV/setup.json"
