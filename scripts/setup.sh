#!/usr/bin/env bash
# Set up what Podwire needs on a Debian machine: packages, .venv, the project in it. Safe to repeat; a repeat takes no time.
#
#   scripts/setup.sh [dev] [bench]    besides what the demo needs: tests and linters, plots
#   PYTHON=/path/to/python3.11 scripts/setup.sh    to choose the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
extras=$(printf '%s\n' "$@" | sort -u | paste -sd, -)

# What to run, and the Debian package that brings it.
commands=(ip:iproute2 nft:nftables iperf3:iperf3 ping:iputils-ping traceroute:traceroute pgrep:procps)
# For the tests; commands without a place on PATH are named by theirs. Runtimes are conformance-setup.sh's.
[[ ",$extras," == *,dev,* ]] && commands+=(
    tshark:tshark iptables:iptables etcd:etcd-server etcdctl:etcd-client /usr/lib/cni/portmap:containernetworking-plugins
)

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# run_quietly WHAT PATTERN COMMAND...: run it, count the lines that match the pattern where a person looks on, and show
# the end of what it printed if it fails.
run_quietly() {
    local what=$1 pattern=$2 log started=$SECONDS
    shift 2
    say "$what"
    log=$(mktemp -t podwire-setup.XXXXXX)
    if ! "$@" 2>&1 </dev/null | tee "$log" | show_progress "$pattern"; then
        printf '%s\n' "--- the last lines of $log:" >&2
        tail -n 15 "$log" >&2
        die "$what: failed, for the reason above. ${remedy:-Mend it, then run this again.}"
    fi
    rm -f "$log"
    say "  done in $((SECONDS - started)) s"
}

show_progress() {
    local line count=0
    while IFS= read -r line; do
        if [[ -t 1 && $line =~ $1 ]]; then
            count=$((count + 1))
            printf '\r\033[K[setup]   %d: %.90s' "$count" "$line"
        fi
    done
    if ((count)); then printf '\r\033[K'; fi
}

missing_packages() {
    local pair
    for pair in "${commands[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
    if [[ -z ${PYTHON:-} ]]; then
        if [[ -z $(find_python) ]]; then printf '%s\n' python3 python3-venv
        elif /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            /usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
        fi
    fi
    # python-pytun comes built for x86-64; elsewhere pip compiles it.
    if [[ $(uname -m) != x86_64 ]]; then
        command -v gcc >/dev/null || echo gcc libc6-dev
        [[ -n $(find /usr/include -name Python.h -print -quit 2>/dev/null) ]] || echo python3-dev
    fi
}

# The first interpreter that is new enough and can make a venv. Debian's comes first: it is built with profile-guided
# optimization, which spares the router a seventh of its CPU against a version manager's plain build.
find_python() {
    local python
    for python in ${PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$python" -c 'import sys; print(sys._base_executable)' # of a venv: what it was made from
            return
        fi
    done
}

install_packages() {
    local packages=("$@")
    command -v apt-get >/dev/null ||
        die "these Debian packages' commands are missing, and there is no apt-get here: ${packages[*]}. Install them as this system does it, then run this again."
    ((EUID == 0)) || die "these Debian packages are missing: ${packages[*]}. Run this again as root, or: sudo apt-get install ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local remedy="Is it the network? See whether this answers: apt-get update"
    run_quietly "reading Debian's package lists" . apt-get -o DPkg::Lock::Timeout=120 update
    run_quietly "installing Debian packages: ${packages[*]}" '^(Unpacking|Setting up) ' \
        apt-get -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends "${packages[@]}"
}

make_venv() {
    local python
    python=$(find_python)
    [[ -n $python ]] || die "Python 3.11 or newer with its venv module is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true). \
Debian 12 has it (apt-get install python3 python3-venv), or name one: PYTHON=/path/to/python3.11 make setup"
    # One left by an interrupted run, moved here from elsewhere, or whose interpreter is no more, is made anew.
    if ! "$VENV/bin/pip" --version >/dev/null 2>&1; then
        rm -rf "$VENV"
        run_quietly "making $VENV with $("$python" --version) from $python" . "$python" -m venv "$VENV"
    fi
}

install_project() {
    local remedy="Is it the network? See whether this answers: $VENV/bin/pip download --no-deps -d /tmp click"
    run_quietly "installing Podwire and its Python packages${extras:+, with $extras}" '^ *(Collecting|Building|Installing) ' \
        env PODWIRE_BUILD_NATIVE=0 "$VENV/bin/python" -m pip install --disable-pip-version-check --root-user-action ignore \
        --constraint constraints.txt --editable ".${extras:+[$extras]}"
    "$VENV/bin/podwire" --help >/dev/null || die "the installed command does not start: $VENV/bin/podwire --help"
}

# Two of us at once would write into the same .venv.
exec 9<"${BASH_SOURCE[0]}"
flock 9

mapfile -t packages < <(missing_packages | tr ' ' '\n' | sort -u)
if ((${#packages[@]})); then install_packages "${packages[@]}"; fi

# The stamp says what was installed, and from what: when that is so still, there is nothing to do.
stamp="$VENV/.podwire"
inputs=$(cat pyproject.toml setup.py constraints.txt "${BASH_SOURCE[0]}" | sha256sum)" $PWD"
installed=none
if [[ $(sed -n 1p "$stamp" 2>/dev/null) == "$inputs" ]] && "$VENV/bin/python" -c '' 2>/dev/null; then
    installed=$(sed -n 2p "$stamp")
    # shellcheck disable=SC2086 # words are meant
    extras=$(printf '%s\n' ${installed//,/ } ${extras//,/ } | sort -u | paste -sd, -)
fi
if [[ $extras != "$installed" ]]; then
    make_venv
    install_project
    printf '%s\n' "$inputs" "$extras" >"$stamp"
    say "ready: $VENV/bin/podwire --help"
fi

# Apart from pip, which would hide what it says and begin from nothing each time.
scripts/build-native.sh
