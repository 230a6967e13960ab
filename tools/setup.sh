#!/bin/sh
# Make .venv hold exactly what requirements.lock names, and this checkout; or say in one line why not.
#
#   sh tools/setup.sh [PYTHON]
#
# uv builds it if it is on PATH; if it is not, or fails (it ignores pip's settings), the newest Python with venv and pip.
# Two empty files in .venv say how far it came, each named by a hash and written last: `locked-` (the lock and the
# interpreter: packages are there) and `ready-` (pyproject.toml too: this checkout is there). The interpreter's part of
# the hash holds where it lies, so that a moved checkout or a foreign .venv is built anew.
set -eu
unset CDPATH PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV
cd -- "$(dirname -- "$0")/.."

asked=${1:-}
python=.venv/bin/python
log=.venv-setup.log
oldest=3.11
needs_mb=400

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
quietly() { printf '+ %s\n' "$*" >>"$log" && "$@" >>"$log" 2>&1 </dev/null; }

digest() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256
    else cksum
    fi | tr -dc '0-9a-f' | cut -c 1-16
}

interpreter() { # which Python NAME is, and where its installation lies; -S because start-up time counts here
    "$1" -I -S -c 'import os, sys; os.write(1, b"|".join(map(os.fsencode, [sys.version, sys.base_prefix, sys.executable])))' 2>/dev/null
}

stamps() { # set $locked and $ready, or fail: there is no working environment of this place
    [ -x "$python" ] || return 1
    here=$(interpreter "$python") || return 1
    case $here in *"|$(pwd -P)/$python") ;; *) return 1 ;; esac
    locked=.venv/locked-$({ printf '%s' "$here"; cat requirements.lock; } | digest)
    ready=.venv/ready-$({ printf '%s' "$here"; cat requirements.lock pyproject.toml; } | digest)
    [ -z "$asked" ] || { that=$(interpreter "$asked") && [ "${here%|*}" = "${that%|*}" ]; }
}

if stamps && [ -e "$ready" ]; then exit 0; fi

find_python() { # set $base to the newest Python that can make an environment; or $reason
    reason="no Python found: install Python $oldest or newer"
    for name in ${asked:+"$asked"} $([ -n "$asked" ] || echo python3.14 python3.13 python3.12 python3.11 python3 python); do
        command -v "$name" >/dev/null 2>&1 || continue
        answer=$("$name" -I -c 'import sys
v = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11): print("old " + v)
else:
    try: import venv, ensurepip, pyexpat
    except ImportError: print("bare " + v)
    else: print("good " + v)' 2>/dev/null) || continue
        case $answer in
            good*) base=$name; return 0 ;;
            bare*) reason="Python ${answer#* } has no ensurepip: install it (Debian, Ubuntu: apt install python${answer#* }-venv), or uv" ;;
            old*) case $reason in *ensurepip*) ;; *)
                reason="Python ${answer#* } is too old: install Python $oldest or newer, or uv" ;; esac ;;
        esac
    done
    return 1
}

why() { # one line: what $log says went wrong, and what to do
    if grep -qiE 'no space left|os error 28|disk quota' "$log" || [ "$(free_mb .)" -lt 20 ] ||
        [ "$(free_mb "${TMPDIR:-/tmp}")" -lt 60 ]; then
        echo "no space: about $needs_mb MB are needed here and in ${TMPDIR:-/tmp}; free some, then run it again"
    elif grep -qiE 'certificate|SSLError' "$log"; then
        echo "the package index's certificate is not trusted: set the one of your network for pip (pip config set global.cert FILE)"
    elif grep -qiE 'NewConnectionError|NameResolutionError|Max retries|timed out|Connection (refused|reset|aborted)|ProxyError|unreachable|dns error|error sending request|failed to lookup' "$log"; then
        echo "no network: the package index cannot be reached; connect, or set its address or a proxy for pip (pip config), then run it again"
    elif grep -qiE 'do not match the hashes|hash mismatch' "$log"; then
        echo "a package is not the one requirements.lock names: the index or a proxy serves another file"
    elif grep -qiE 'no matching distribution|no wheels|no solution found|not have a wheel' "$log"; then
        echo "a package of requirements.lock has no ready-made build for this Python and system: try another, PYTHON=python3.12"
    else
        { grep -E '^ *(ERROR|error|fatal)|[a-z]Error: ' "$log" || grep -E '[a-z]' "$log"; } | tail -n 1
    fi
}

free_mb() { # of a folder; much where df does not tell
    df -Pk "$1" 2>/dev/null |
        awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) mb = int($(i - 1) / 1024) } END { print mb == "" ? 1000000 : mb }'
}

clear_venv() { # aside first: a kill while it is being removed leaves no half environment under its name
    if [ -e .venv ] || [ -L .venv ]; then mv .venv ".venv-old-$$"; fi
    rm -rf .venv-old-*
}

uv_install() { quietly uv pip install --python "$python" "$@"; }
pip_install() { quietly "$python" -m pip --disable-pip-version-check install --no-input "$@"; }

build() { # install the lock, then this checkout, with uv or pip; what stands already is kept
    if ! { stamps && [ -e "$locked" ] && { [ "$1" = uv ] || "$python" -I -c 'import pip' 2>/dev/null; }; }; then
        clear_venv
        case $1 in
            uv) quietly uv venv --no-project --python "${asked:->=$oldest}" .venv ;;
            pip) quietly "$base" -m venv .venv ;;
        esac && stamps || return 1
        "$1_install" --require-hashes --only-binary :all: -r requirements.lock || return 1
        : >"$locked"
    fi
    rm -f .venv/ready-*
    "$1_install" --no-deps --no-build-isolation -e . || return 1
    # Relative, so that it is ASCII: Python up to 3.12 reads it in the locale's encoding and may not start otherwise.
    for pth in .venv/lib/python3*/site-packages/*scopeferry.pth; do
        [ ! -e "$pth" ] || printf '%s\n' ../../../../src >"$pth"
    done
    : >"$ready"
}

[ -w . ] || fail "this folder cannot be written: $(pwd -P): change its permissions, or clone elsewhere"

# One at a time: a second call waits here, and then mostly finds everything done.
if command -v flock >/dev/null 2>&1; then
    exec 9>.venv-lock
    flock -n 9 || { say "waiting for another set-up of this folder"; flock 9; }
    if stamps && [ -e "$ready" ]; then exit 0; fi
fi
{ stamps && [ -e "$locked" ]; } || [ "$(free_mb .)" -ge "$needs_mb" ] ||
    fail "no space: about $needs_mb MB are needed here, $(free_mb .) are free; free some, then run it again"
: >"$log"
began=$(date +%s)

tool=
if command -v uv >/dev/null 2>&1; then
    say "building .venv with uv"
    if build uv; then tool=uv; else say "uv could not: $(why)"; fi
fi
if [ -z "$tool" ]; then
    find_python || fail "$reason"
    : >"$log"
    say "building .venv with $base and pip (once; a minute or so)"
    build pip || fail "$(why)   (all of it: $log)"
    tool=pip
fi
say "done in $(($(date +%s) - began)) s"
