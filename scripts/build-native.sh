#!/usr/bin/env bash
# Build the compiled parts, the engine and the CNI plugin, and put them where the Python packages look for them.
#
#   scripts/build-native.sh             where cargo is; elsewhere one line says that Python's are used, and all is well
#   scripts/build-native.sh --require   an error where they cannot be built
#
# They stand in the source tree, ignored by git: router/engine/native/_core.abi3.so, shim/cni/native/podwire-cni.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
    '') require= ;;
    --require) require=1 ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

readonly PLUGIN=shim/cni/native/podwire-cni ENGINE=router/engine/native/_core.abi3.so

# The whole of what is said when they are not built, so that nobody wonders which are used.
without() {
    local why="the compiled engine and CNI plugin are not built: $1" used="the ones in Python are used"
    if [[ $require ]]; then
        printf '[native] error: %s\n' "$why" >&2
        exit 1
    fi
    [[ -e $PLUGIN || -e $ENGINE ]] && used="what was built before stays in use"
    printf '[native] %s; %s. To have them: %s, then scripts/build-native.sh\n' "$why" "$used" "$2"
    exit 0
}

# Put a file in the place of another at once: a router may be running from it.
place() {
    cmp --silent "$1" "$2" && return
    local draft
    draft=$(mktemp "$2.XXXXXX")
    install -m 0755 "$1" "$draft"
    mv -f "$draft" "$2"
}

command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || without "there is no cargo" "install Rust 1.88 or newer (rustup, or the system's rustc and cargo)"

target=${CARGO_TARGET_DIR:-$PWD/target}
log=$(mktemp -t podwire-native.XXXXXX)
trap 'rm -f "$log"' EXIT

build() { CARGO_TARGET_DIR=$target CARGO_TERM_COLOR=never cargo build --release --locked --quiet "$@" >>"$log" 2>&1; }

if ! build -p podwire-cni || ! build -p podwire-engine --features python --lib; then
    # No crates and no way to them, or a toolchain that is too old: not the source's fault, and no reason to stop.
    kept=${TMPDIR:-/tmp}/podwire-native-$EUID.log
    cp -f "$log" "$kept"
    reason=$(grep -m1 -E '^error' "$log" || true)
    without "cargo says \"${reason:-nothing}\" (all of it: $kept)" "mend that"
fi
place "$target/release/podwire-cni" "$PLUGIN"
place "$target/release/libpodwire_engine.so" "$ENGINE"
