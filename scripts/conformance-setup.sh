#!/usr/bin/env bash
# Set up the real container runtimes, browser and promtool that `make conformance` runs against, on a Debian machine. Safe to repeat; a repeat
# takes no time.
#
# Debian's own packages are installed (where systemd runs, it starts their services; the tests start daemons of their own
# and leave those alone). Newer containerds come from newer suites of this machine's own Debian mirror and are
# only unpacked, into build/conformance/containerd-VERSION: nothing of those suites is installed. Where that cannot be, the
# reason is left in build/conformance/containerd-VERSION.missing, and the tests that need it say so and are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PARTS=$PWD/build/conformance
# What to run, or a file, and the Debian package that brings it.
readonly WANTED=(containerd:containerd runc:runc podman:podman conmon:conmon busybox:busybox-static iptables:iptables
    chromium:chromium chromedriver:chromium-driver
    go:golang-go /usr/lib/cni/bridge:containernetworking-plugins
    /usr/share/gocode/src/github.com/containernetworking/cni/libcni:golang-github-appc-cni-dev)
# containerd by version, and the Debian suite that has it.
readonly NEWER=(1.7:trixie 2:sid)

say() { printf '[conformance] %s\n' "$*"; }
die() { printf '[conformance] error: %s\n' "$*" >&2; exit 1; }

missing_packages() {
    local pair name
    for pair in "${WANTED[@]}"; do
        name=${pair%%:*}
        if [[ $name == /* ]]; then [[ -e $name ]]; else PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null; fi ||
            echo "${pair##*:}"
    done
}

install_packages() {
    command -v apt-get >/dev/null || die "these Debian packages are missing, and there is no apt-get here: $*"
    say "installing Debian packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp -t podwire-conformance.XXXXXX)
    {
        apt-get -o DPkg::Lock::Timeout=300 update &&
            apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "$@"
    } >"$log" 2>&1 </dev/null || { tail -n 15 "$log" >&2; die "apt-get failed, for the reason above"; }
    rm -f "$log"
}

# The URI of the mirror this machine gets Debian itself from: the first whose suite is that of the system.
debian_mirror() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [[ -n $codename ]] || return 0
    apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(REPO_URI)' 'Identifier: Packages' 2>/dev/null |
        awk -F '|' -v codename="$codename" '$1 == "Debian" && $2 == codename { print $3; exit }'
}

# private_apt COMMAND...: apt-get with lists, cache and sources of our own, which leaves the system's alone.
private_apt() {
    local root=$PARTS/apt
    mkdir -p "$root"/{lists,cache/archives}/partial
    apt-get -o Dir::Etc::SourceList="$root/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$root/lists" \
        -o Dir::Cache="$root/cache" -o APT::Sandbox::User=root -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::Languages=none "$@"
}

# unpack VERSION SUITE: leave containerd in $PARTS/containerd-VERSION, or fail with the reason on standard output.
unpack() {
    local version=$1 suite=$2 target=$PARTS/containerd-$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local mirror draft log said
    mirror=$(debian_mirror)
    [[ -n $mirror ]] || { echo "this machine has no Debian mirror configured to get it from"; return 1; }
    draft=$target.draft log=$PARTS/apt/log
    rm -rf "$draft"
    mkdir -p "$draft" "$PARTS/apt"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$PARTS/apt/sources.list"
    private_apt update >"$log" 2>&1 || { echo "reading the lists of $suite failed: $(tail -n 1 "$log")"; return 1; }
    (cd "$draft" && private_apt download "containerd/$suite") >"$log" 2>&1 || { echo "no containerd came from $suite: $(tail -n 1 "$log")"; return 1; }
    dpkg-deb -x "$draft"/containerd_*.deb "$draft"
    rm -f "$draft"/containerd_*.deb
    said=$("$draft/usr/bin/containerd" --version 2>&1 | head -n 1)
    [[ $said == *" $version."* ]] || { echo "what $suite has is no $version, or does not run here: $said"; return 1; }
    mv "$draft" "$target"
}

# promtool out of Debian's package of Prometheus, whose server is not installed and so not started either.
unpack_promtool() {
    [[ -x $PARTS/promtool ]] && return
    say "unpacking promtool"
    local draft=$PARTS/promtool.draft log
    rm -rf "$draft" && mkdir -p "$draft"
    log=$(mktemp -t podwire-conformance.XXXXXX)
    (cd "$draft" && { apt-get -o APT::Sandbox::User=root download prometheus || {
        apt-get -o DPkg::Lock::Timeout=300 update && apt-get -o APT::Sandbox::User=root download prometheus; }; }) >"$log" 2>&1 </dev/null ||
        { tail -n 15 "$log" >&2; die "Debian's package prometheus did not come, for the reason above"; }
    rm -f "$log"
    dpkg-deb -x "$draft"/prometheus_*.deb "$draft"
    "$draft/usr/bin/promtool" --version >/dev/null 2>&1 || die "promtool of Debian's prometheus does not run here"
    mv "$draft/usr/bin/promtool" "$PARTS/promtool"
    rm -rf "$draft"
}

build_driver() {
    local source=tests/conformance/libcni/main.go driver=$PARTS/libcni-driver
    [[ $driver -nt $source ]] && return
    say "building the libcni driver"
    GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS= go build -o "$driver" "$source"
}

mkdir -p "$PARTS"
exec 9<"$PARTS"
flock 9

mapfile -t packages < <(missing_packages | sort -u)
if ((${#packages[@]})); then
    ((EUID == 0)) || die "these Debian packages are missing: ${packages[*]}. Run this again as root"
    install_packages "${packages[@]}"
fi
for pair in "${NEWER[@]}"; do
    version=${pair%%:*} suite=${pair##*:}
    [[ -x $PARTS/containerd-$version/usr/bin/containerd ]] && continue
    say "unpacking containerd $version from Debian's $suite"
    if why=$(unpack "$version" "$suite"); then
        rm -f "$PARTS/containerd-$version.missing"
    else
        printf '%s\n' "$why" >"$PARTS/containerd-$version.missing"
        say "WARNING: no containerd $version, so its tests will be skipped: $why"
    fi
done
unpack_promtool
rm -rf "$PARTS/apt" "$PARTS"/*.draft
build_driver
