#!/usr/bin/env bash
# ext4, xfs and btrfs are written and fsynced when the power fails; the machine
# starts again: attach, mount with a clean replay of the journal, every fsynced file is intact, the check of the file system finds nothing, and it goes
# on being written. One cut hits all three, each in the middle of its own work.
# `local`: format 2, and what was fsynced is in a journal on ext4 on the machine's own disk.
#
# This script runs from the beginning after each cut; TEST_BOOT counts. TEST_SEED
# chooses the moments. What must outlive the machine is synced to TEST_DIR.
# cases: format1 format2 local
# full: format1
# needs: swift cuts mem=1536M timeout=800
# local needs: disk=2G
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

cuts=2
if [[ $full ]]; then cuts=10; fi
if [[ $TEST_CASE == local ]]; then
    cuts=3
    if [[ $full ]]; then cuts=20; fi
fi
kinds=(ext4 xfs btrfs)
declare -A size=([ext4]=128M [xfs]=320M [btrfs]=256M) device=() writers=()

# ---- the moments ----

# Cut N: $least files are fsynced in each file system before it, then it comes
# after $delay_ms. With --full every second one is followed by another, $again_ms
# after the machine has begun to bring its volumes back.
# shellcheck disable=SC2034 # each caller takes what it needs
moment() {
    { local -; set +x; } 2>/dev/null
    RANDOM=$((TEST_SEED % 32768))
    local cut
    for ((cut = 0; cut <= $1; cut++)); do
        least=$((3 + RANDOM % 8)) delay_ms=$((RANDOM % 1500)) again_ms=$((RANDOM % 12000))
    done
}

# Which boot is for what: `load` for one that is cut under load, `again` for one
# that is cut while it recovers first, `last`.
boots=()
for ((number = 1; number <= cuts; number++)); do
    boots+=("load $number")
    if [[ $full ]] && ((number % 2)); then boots+=("again $number"); fi
done
boots+=("last $cuts")
read -r what number <<<"${boots[TEST_BOOT - 1]}"

# cut MILLISECONDS: after that time this machine has no power.
cut() {
    echo "$1" >"$TEST_DIR/cut.new"
    sync "$TEST_DIR/cut.new"
    mv "$TEST_DIR/cut.new" "$TEST_DIR/cut"
}

# ---- what is written ----

# note KIND SUM NAME: what the file holds durably from now on; - for the sum: not
# known, because it is about to be written.
note() {
    echo "$2 $3" >>"$TEST_DIR/fsynced-$1"
    sync "$TEST_DIR/fsynced-$1"
}

# files KIND: files are written, fsynced and noted, for ever: new ones, blocks
# within old ones, and new ones that replace old ones by their name.
files() {
    { local -; set +x; } 2>/dev/null
    local kind=$1 i name old sum at='' directory=$work/$1/files
    cd "$directory"
    for ((i = 0; ; i++)); do
        name=$TEST_BOOT-$i old=$TEST_BOOT-$((i - 1 - SRANDOM % 3))
        case $((i % 4)) in
            2) name=$old at="oflag=seek_bytes seek=$((SRANDOM % 50000)) conv=notrunc,fsync" ;;
            3) name=$old at='' ;;
            *) at='' ;;
        esac
        # Negative or already replaced: then it is a new one.
        [[ ! -e $name ]] || note "$kind" - "$name"
        # shellcheck disable=SC2086 # words
        dd if=/dev/urandom of="$([[ $at ]] && echo "$name" || echo new)" \
            bs=$((1 + SRANDOM % 60000)) count=1 iflag=fullblock ${at:-conv=fsync} status=none
        if [[ ! $at ]]; then
            mv new "$name"
            sync .
        fi
        sum=$(sha256sum <"$name")
        note "$kind" "${sum%% *}" "$name"
    done
}

# load: all of it, in each file system: files, fsx, and one big file that nobody
# ever syncs.
load() {
    { local -; set +x; } 2>/dev/null
    local kind
    for kind in "${kinds[@]}"; do
        files "$kind" &
        writers[$kind]=$!
        nice "$TEST_FSX" -q -f "$work/fsx.toml" -S "$TEST_SEED" -P "$work" "$work/$kind/fsx-$TEST_BOOT" &
        fsx[$kind]=$!
        while cat /proc/version /proc/cpuinfo /proc/self/maps; do sleep 0.05; done \
            >"$work/$kind/buffered" &
    done
}
declare -A fsx=()
cat >"$work/fsx.toml" <<'END_OF_FSX'
flen = 1048576
[weights]
close_open = 1
truncate = 5
invalidate = 1
fsync = 1
fdatasync = 1
punch_hole = 5
posix_fallocate = 2
copy_file_range = 2
END_OF_FSX

# fsynced KIND: how many files this boot has noted.
fsynced() { grep -c "^[^-].* $TEST_BOOT-" "$TEST_DIR/fsynced-$1"; }
enough() {
    local kind
    for kind in "${kinds[@]}"; do (($(fsynced "$kind") >= $1)) || return 1; done
}
# All are at work; none has met an error.
alive() {
    local kind
    for kind in "${kinds[@]}"; do
        kill -0 "${writers[$kind]}" || fail "the files of $kind have ended"
        kill -0 "${fsx[$kind]}" || fail "fsx in $kind has ended"
    done
}

# ---- after a cut ----

# intact KIND: each file holds what was noted last.
intact() {
    { local -; set +x; } 2>/dev/null
    local name
    awk '{sum[$2] = $1} END {for (name in sum) if (sum[name] != "-") print sum[name] "  " name}' \
        "$TEST_DIR/fsynced-$1" >"$work/sums"
    [[ -s $work/sums ]] || fail "nothing was fsynced in $1"
    (cd "$work/$1/files" && sha256sum --quiet -c "$work/sums") || fail "$1 has lost what was fsynced"
    # What was about to be written is there, old or new.
    while read -r _ name; do
        [[ -f $work/$1/files/$name ]] || fail "$1 has lost $name"
    done <"$TEST_DIR/fsynced-$1"
    echo "$1: $(wc -l <"$work/sums") fsynced files are intact"
}

# replayed KIND: mounting it replayed the journal, and found nothing wrong.
replayed() {
    { local -; set +x; } 2>/dev/null
    local said
    said=$(dmesg | grep -w "${device[$1]#/dev/}")
    echo "$said"
    ! grep -iE 'error|warn|fail|corrupt|bad|invalid' <<<"$said" || fail "the kernel says this of $1"
    case $1 in
        ext4) contains "$said" 'recovery complete' ;;
        xfs) contains "$said" 'Starting recovery' 'Ending recovery' ;;
        # It has a journal for fsyncs alone, and often none.
        btrfs) ;;
    esac
}

# clean KIND: its own check finds nothing, and changes nothing.
clean() {
    case $1 in
        ext4) expect 0 fsck.ext4 -fn "${device[ext4]}" ;;
        xfs) expect 0 xfs_repair -n "${device[xfs]}" ;;
        btrfs) expect 0 btrfs check --readonly "${device[btrfs]}" ;;
    esac
}

# attach_all: side by side, for each waits.
attach_all() {
    { local -; set +x; } 2>/dev/null
    local kind
    declare -A attaching=()
    for kind in "${kinds[@]}"; do
        swiftnbd attach "$kind" >"$work/device-$kind" &
        attaching[$kind]=$!
    done
    for kind in "${kinds[@]}"; do
        wait "${attaching[$kind]}" || fail "attach $kind"
        device[$kind]=$(<"$work/device-$kind")
    done
}

# recover: from the volumes as the dead machine has left them to mounted ones.
recover() {
    local kind
    # The lease of the dead machine runs out by itself.
    attach_all
    for kind in "${kinds[@]}"; do
        mount "${device[$kind]}" "$work/$kind"
        replayed "$kind"
        intact "$kind"
        umount "$work/$kind"
        clean "$kind"
        mount "${device[$kind]}" "$work/$kind"
    done
}

# ---- the boots ----

format=${TEST_CASE#format}
if [[ $TEST_CASE == local ]]; then
    format=2
    # shellcheck disable=SC2034
    journals=$work/disk
    mkdir "$journals"
    ((TEST_BOOT > 1)) || mkfs.ext4 -q /dev/ubda
    mount /dev/ubda "$journals"
fi
# shellcheck disable=SC2034
lease=5s
volumes swift "${kinds[@]}"
mkdir "${kinds[@]/#/$work/}"
if ((TEST_BOOT == 1)); then
    for kind in "${kinds[@]}"; do
        swiftnbd setup "$kind" --size "${size[$kind]}" --format "$format"
        : >"$TEST_DIR/fsynced-$kind"
    done
    attach_all
    for kind in "${kinds[@]}"; do
        "mkfs.$kind" -q "${device[$kind]}"
        mount "${device[$kind]}" "$work/$kind"
        mkdir "$work/$kind/files"
        sync -f "$work/$kind"
    done
else
    if [[ $what == again ]]; then
        moment "$number"
        cut "$again_ms"
    fi
    recover
    [[ $what != again ]] || sleep infinity
fi

if [[ $what == load ]]; then
    load
    moment "$number"
    wait_for 240 enough "$least"
    alive
    no_io_errors "${device[@]}"
    cut "$delay_ms"
    wait
    fail 'there still is power'
fi

: the last time: what is there can be written, and detached
for kind in "${kinds[@]}"; do
    "$TEST_FSX" -q -f "$work/fsx.toml" -S "$TEST_SEED" -N 150 "$work/$kind/fsx" &
    fsx[$kind]=$!
done
for kind in "${kinds[@]}"; do
    wait "${fsx[$kind]}"
    umount "$work/$kind"
done
no_io_errors "${device[@]}"
for kind in "${kinds[@]}"; do
    swiftnbd detach "$kind"
    equal "lock of $kind" "$(lock_of "$kind")" unlocked
done
if [[ $TEST_CASE == local ]]; then
    equal journals "$(find "$journals" -name '*.journal*')" ''
    umount "$journals"
fi
no_processes
