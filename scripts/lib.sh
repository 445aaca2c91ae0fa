# shellcheck shell=bash
# What the scripts beside this file share. Source it; it does nothing by itself.

# say TEXT...: tell the person, on stderr (stdout is for results).
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT...: say it and end with status 1.
die() {
    say "$*"
    exit 1
}

# need_packages PACKAGE...: install the Debian packages that are missing.
# Scripts running side by side take turns.
need_packages() {
    local package output missing=() sudo=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || sudo=(sudo -n)
    say "installing ${missing[*]}"
    if ! output=$(
        exec 9>"${TMPDIR:-/tmp}/swiftnbd-apt.$UID.lock" 2>&1
        flock 9
        "${sudo[@]}" apt-get update -qq &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
                install -y -q --no-install-recommends "${missing[@]}"
    ); then
        printf '%s\n' "$output" >&2
        die "apt-get could not install ${missing[*]}"
    fi
}

# free_port: print a TCP port that no socket here uses. Ports come from below
# the range that the kernel gives to outgoing connections, so that a server
# which is stopped for a while finds its port still free.
free_port() {
    local port hex tables=(/proc/net/tcp)
    [[ ! -e /proc/net/tcp6 ]] || tables+=(/proc/net/tcp6)
    while :; do
        port=$((20000 + SRANDOM % 12000))
        printf -v hex ':%04X ' "$port"
        grep -qF "$hex" "${tables[@]}" || break
    done
    echo "$port"
}
