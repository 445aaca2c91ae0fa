# shellcheck shell=bash
# What the tests beside this file share; each sources it first. They run as root
# under a kernel that has the nbd driver, started by `run`, which sets
#
#   TEST_DIR       the test's directory, kept; the host sees it as well
#   TEST_CASE      which of the test's cases this is, if it has any
#   TEST_FULL      1: larger counts
#   TEST_SEED      what chance is to start from, where a test says so
#   TEST_BOOT      which start of the machine this is, from 1
#   TEST_SWIFTNBD  the program
#   TEST_FSX       the file system exerciser
#
# and, for a test that needs Swift, where that is. Everything a test makes on
# the way is in $work, which goes at its end.

set -euo pipefail
shopt -s inherit_errexit

work=$(mktemp -d /tmp/swiftnbd-test.XXXXXX)
config=$work/swiftnbd.toml
daemon_log=$TEST_DIR/daemon.log
# shellcheck disable=SC2034
full=${TEST_FULL:-}

# The commands go to the log, with the seconds since the start.
# shellcheck disable=SC2034
PS4='+ $SECONDS s: '
set -x

# ---- saying no ----

# fail TEXT...: end the test.
fail() {
    { local -; set +x; } 2>/dev/null
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

on_error() {
    local status=$?
    { set +x; } 2>/dev/null
    printf 'FAILED: status %s in line %s of %s: %s\n' \
        "$status" "${BASH_LINENO[0]}" "${BASH_SOURCE[1]##*/}" "$BASH_COMMAND" >&2
    exit 1
}
set -o errtrace
trap on_error ERR

# expect STATUS COMMAND...: runs it, wants this exit status, and leaves what it
# printed in $out and $err.
expect() {
    { local -; set +x; } 2>/dev/null
    local wanted=$1 status=0
    shift
    trap - ERR
    "$@" >"$work/out" 2>"$work/err" || status=$?
    trap on_error ERR
    # shellcheck disable=SC2034
    out=$(<"$work/out") err=$(<"$work/err")
    sed 's/^/    /' "$work/out"
    sed 's/^/  ! /' "$work/err"
    ((status == wanted)) || fail "status $status instead of $wanted: $*"
}

# contains TEXT PART...: the text has each of these parts.
contains() {
    { local -; set +x; } 2>/dev/null
    local text=$1 part
    shift
    for part; do [[ $text == *"$part"* ]] || fail "'$part' is not in: $text"; done
}

# equal WHAT FOUND WANTED
equal() {
    { local -; set +x; } 2>/dev/null
    [[ $2 == "$3" ]] || fail "$1: '$2' instead of '$3'"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    { local -; set +x; } 2>/dev/null
    local deadline=$((SECONDS + $1))
    shift
    trap - ERR
    until "$@" >"$work/condition" 2>&1; do
        if ((SECONDS >= deadline)); then
            cat "$work/condition" >&2
            fail "not in time: $*"
        fi
        sleep 0.1
    done
    trap on_error ERR
}

no() { ! "$@"; }

# ---- swiftnbd ----

# As a user types it; bounded in time, with the test's configuration.
swiftnbd() {
    timeout --kill-after 5 "${patience:-150}" "$TEST_SWIFTNBD" "${options[@]}" "$@"
}
options=(--config "$config" --log-file "$daemon_log")

# elsewhere ARGUMENT...: the same on another machine, as far as files and names tell.
elsewhere() {
    # shellcheck disable=SC2016
    timeout --kill-after 5 "${patience:-150}" unshare --uts --mount bash -c '
        hostname elsewhere && mount -t tmpfs tmpfs /run/swiftnbd && exec "$@"
    ' bash "$TEST_SWIFTNBD" "${options[@]}" "$@"
}

# second_machine [CONFIG]: one like that which lasts, with that configuration or the
# test's; `there` is on it. Its process is $second.
second_machine() {
    there_config=${1:-$config}
    # shellcheck disable=SC2016
    unshare --uts --mount bash -c '
        hostname elsewhere && mount -t tmpfs tmpfs /run/swiftnbd && touch "$1" && exec sleep infinity
    ' bash "$work/second" &
    second=$!
    wait_for 30 test -e "$work/second"
}

# there ARGUMENT...: swiftnbd on the second machine.
there() {
    timeout --kill-after 5 "${patience:-150}" nsenter --target "$second" --mount --uts \
        "$TEST_SWIFTNBD" --config "$there_config" --log-file "$TEST_DIR/there.log" "$@"
}

# volumes dir|swift NAME...: write the configuration; with journals in $journals, if that
# is set.
volumes() {
    { local -; set +x; } 2>/dev/null
    local where=$1 name
    shift
    {
        if [[ $where == swift ]]; then
            printf '[swift]\nauth_url = "%s"\nusername = "%s"\npassword = "%s"\n' \
                "$auth_url" "$SWIFTNBD_LAB_USER" "${swift_key:-$SWIFTNBD_LAB_KEY}"
        fi
        for name; do
            printf '\n[volumes.%s]\n' "$name"
            [[ ! ${lease:-} ]] || printf 'lease = "%s"\n' "$lease"
            [[ ! ${journals:-} ]] ||
                printf 'flush = "local"\njournal = "%s/%s.journal"\n' "$journals" "$name"
            [[ $where == swift ]] || printf 'store = "dir:%s"\n' "$work/store"
        done
    } >"$config"
    chmod 600 "$config"
    mkdir -p "$work/store"
}

# entry NAME COLUMN: what status says of a volume, nothing if it is not attached.
# The columns: 1 device, 4 process, 6 state. (Python takes seconds to start in
# the guest.)
entry() {
    { local -; set +x; } 2>/dev/null
    swiftnbd status | awk -v "name=$1" -v "column=$2" '$2 == name {print $column}'
}
pid_of() { entry "$1" 4; }
state_of() { entry "$1" 6; }

# lock_of NAME: what list says of the lock.
lock_of() {
    { local -; set +x; } 2>/dev/null
    swiftnbd list | sed -n "s/^$1 .*version=[12], \(.*\))\$/\1/p"
}

# unlocked NAME
unlocked() { [[ $(lock_of "$1") == unlocked ]]; }

# connected DEVICE: some process has connected it.
connected() { [[ -e /sys/block/${1#/dev/}/pid ]]; }

# gone PID: the process has ended.
gone() { [[ ! -e /proc/$1/exe ]]; }

# guardian_of PID: the daemon's guardian.
guardian_of() {
    { local -; set +x; } 2>/dev/null
    (grep -lsx "PPid:[[:space:]]*$1" /proc/[0-9]*/status || true) | cut -d / -f 3
}

# detached NAME DEVICE PID: nothing is left of the attachment but the volume.
detached() {
    gone "$3" || fail "the daemon of $1, process $3, still runs"
    no connected "$2" || fail "$2 is still connected"
    equal "state of $1" "$(state_of "$1")" ''
    equal "lock of $1" "$(lock_of "$1")" unlocked
}

# no_processes: no daemon and no guardian is left.
no_processes() {
    { local -; set +x; } 2>/dev/null
    local exe
    for exe in /proc/[0-9]*/exe; do
        [[ ! $exe -ef $TEST_SWIFTNBD ]] || return 1
    done
}

# free_device: print the path of a device that nobody uses.
free_device() {
    { local -; set +x; } 2>/dev/null
    local block
    for block in /sys/block/nbd*; do
        if [[ ! -e $block/pid && $(<"$block/size") == 0 ]]; then
            echo "/dev/${block##*/}"
            return
        fi
    done
    fail "no nbd device is free"
}

# no_io_errors DEVICE...: the kernel has seen none since the last call.
no_io_errors() {
    { local -; set +x; } 2>/dev/null
    local bad names
    names=$(IFS='|' && echo "${*#/dev/}")
    bad=$(dmesg | tail -n +$((seen + 1)) | grep -wE "$names" |
        grep -iE 'error|fail|timed out|abort|corrupt' | grep -v 'Send disconnect failed') || true
    [[ ! $bad ]] || fail "the kernel says: $bad"
    seen=$(dmesg | wc -l)
}
seen=$(dmesg | wc -l)

# sum DEVICE: the checksum of all that the device (not a cache) holds.
sum() {
    dd if="$1" iflag=direct bs=1M status=none | sha256sum | cut -d ' ' -f 1
}

# pattern NUMBER SIZE: text that is nowhere the same.
pattern() {
    { local -; set +x; } 2>/dev/null
    (seq "$1"00000001 "$1"99999999 2>/dev/null || true) | head -c "$2"
}

# ---- Swift ----

if [[ ${SWIFTNBD_LAB_PORT:-} ]]; then
    auth_url=http://$SWIFTNBD_HOST_IP:$SWIFTNBD_LAB_PORT/auth/v1.0
fi

# lab COMMAND...: scripts/lab, run by the host for this test's Swift.
lab() {
    { local -; set +x; } 2>/dev/null
    local request=$TEST_DIR/requests/$BASHPID.$SRANDOM
    rm -f "$work/login"
    printf '%s\n' "$@" >"$request.new"
    mv "$request.new" "$request.ask"
    wait_for 120 test -e "$request.done"
    cat "$request.output"
    [[ $(<"$request.done") == 0 ]] || fail "scripts/lab $*"
}

# http METHOD PATH [ARGUMENT...]: curl in the account; the path begins with the
# container's name.
http() {
    { local -; set +x; } 2>/dev/null
    local method=$1 path=$2 how=(-X "$1") token url
    shift 2
    [[ $method != HEAD ]] || how=(--head)
    if [[ ! -s $work/login ]]; then
        curl "${curl[@]}" --include -H "X-Auth-User: $SWIFTNBD_LAB_USER" \
            -H "X-Auth-Key: $SWIFTNBD_LAB_KEY" "$auth_url" | tr -d '\r' >"$work/login.new"
        mv "$work/login.new" "$work/login"
    fi
    token=$(sed -n 's/^x-auth-token: //Ip' "$work/login")
    url=$(sed -n 's/^x-storage-url: //Ip' "$work/login")
    curl "${curl[@]}" "${how[@]}" -H "X-Auth-Token: $token" "$@" "$url/$path"
}
curl=(--silent --show-error --fail --max-time 60 --noproxy '*')

# objects CONTAINER [PREFIX]: the names of its data objects (those of format 1; of
# format 2 they begin with seg/), a line each.
objects() {
    { local -; set +x; } 2>/dev/null
    http GET "$1?prefix=${2:-disk.part/}&limit=10000"
}

# object_count CONTAINER [PREFIX]
object_count() { objects "$@" | wc -l; }

# metadata CONTAINER KEY: the value of X-Container-Meta-Swiftnbd-KEY.
metadata() {
    { local -; set +x; } 2>/dev/null
    http HEAD "$1" | tr -d '\r' | sed -n "s/^x-container-meta-swiftnbd-$2: *//Ip"
}

# ---- beginning and end ----

# A registry of the test's own, so that it neither sees nor disturbs what else
# is attached on this machine (`run` has made a mount namespace).
mkdir -p /run/swiftnbd
mount -t tmpfs -o mode=700 tmpfs /run/swiftnbd

# shellcheck disable=SC2317 # the trap calls it
clean_up() {
    local status=$? left entry pid
    trap - ERR
    set +ex
    if ((status)); then
        echo '---- the end of the kernel'\''s log'
        # How it began, and how it ended: in between the same is said of each block. All
        # of it is kept.
        dmesg >"$TEST_DIR/dmesg"
        dmesg | tail -n +$((seen + 1)) | grep -E 'block nbd|nbd: |alloc|oom|memory' | head -n 20
        dmesg | tail -n 12
        echo '---- the end of the daemon'\''s log'
        tail -n 25 "$daemon_log"
    fi
    left=$(jobs -p)
    # shellcheck disable=SC2086 # words
    [[ ! $left ]] || kill -KILL $left
    # A daemon that is killed cannot hang; its guardian frees the device.
    for entry in /run/swiftnbd/*.json; do
        [[ -e $entry ]] || continue
        pid=$(sed -n 's/^ *"pid": \([0-9]*\),$/\1/p' "$entry")
        [[ ! /proc/$pid/exe -ef $TEST_SWIFTNBD ]] || kill -KILL "$pid"
    done
    awk -v "work=$work/" 'index($5, work) == 1 {print $5}' /proc/self/mountinfo | xargs -r umount -l
    umount -l /run/swiftnbd
    rm -rf "$work"
    exit "$status"
} 2>&1
trap clean_up EXIT
