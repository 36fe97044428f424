#!/usr/bin/env bash
# Makes this checkout build: compiler packages, libtorch once per user, and the `.libtorch` link.
#
# Run it as often as you like: a second run only looks and takes well under a second. It honours an
# existing LIBTORCH (a folder with lib/libtorch_cpu.so), installs Debian packages only as root
# (otherwise it names them), and leaves nothing half done: libtorch is unpacked into a temporary
# folder and renamed into place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.11.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/semoe
libtorch=$cache/libtorch-$torch_version

say() { echo "bootstrap: $*" >&2; }
die() { say "$*"; exit 1; }

# need COMMAND PACKAGE: notes the package when the command is missing.
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }

install_missing() {
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "missing packages: ${missing[*]} (as root: apt-get install ${missing[*]})"
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >&2 || {
        apt-get update -q >&2
        apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
    }
    missing=()
}

# Prints a command that runs pip. Debian may ship python3 without pip, or without ensurepip; an
# environment of its own in $1 works whenever python3-venv is there.
pip_command() {
    if python3 -m pip --version >/dev/null 2>&1; then
        echo "python3 -m pip"
        return
    fi
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        missing+=(python3-venv)
        install_missing
    fi
    python3 -m venv "$1/venv" >&2
    echo "$1/venv/bin/python -m pip"
}

fetch_libtorch() {
    command -v python3 >/dev/null || { missing+=(python3 python3-venv); install_missing; }
    # The folder is created by whoever renames first; two checkouts at once do not disturb each other.
    local temp
    mkdir -p "$cache"
    temp=$(mktemp -d "$cache/fetch.XXXXXX")
    # shellcheck disable=SC2064 # the folder's name is fixed now
    trap "rm -rf '$temp'" EXIT
    local pip
    pip=$(pip_command "$temp")
    say "fetching libtorch $torch_version (530 MB) into $libtorch"
    # libtorch_cpu.so needs the CUDA runtime and CUPTI by its own relative path, so the folder layout
    # stays. --target is outside what "externally managed" (PEP 668) speaks of.
    $pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --no-cache-dir --target "$temp/libtorch" \
        "torch==$torch_version" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*' >&2
    [ -e "$temp/libtorch/torch/lib/libtorch_cpu.so" ] || die "the wheel holds no libtorch_cpu.so"
    if ! mv -T "$temp/libtorch" "$libtorch" 2>/dev/null && [ ! -d "$libtorch" ]; then
        die "cannot write $libtorch"
    fi
    rm -rf "$temp"
    trap - EXIT
}

need g++ g++
need make make
command -v cargo >/dev/null || die "cargo is missing: install Rust first"
install_missing

if [ -n "${LIBTORCH:-}" ]; then
    torch=$(realpath -e "$LIBTORCH" 2>/dev/null) || die "LIBTORCH=$LIBTORCH does not exist"
    [ -e "$torch/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so"
else
    torch=$libtorch/torch
    [ -e "$torch/lib/libtorch_cpu.so" ] || fetch_libtorch
fi
if [ "$(readlink .libtorch 2>/dev/null)" != "$torch" ]; then
    ln -sfn "$torch" .libtorch
    say "libtorch is $torch"
fi
