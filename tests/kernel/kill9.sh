#!/usr/bin/env bash
# The daemon is killed under load: its device fails at once, nothing hangs, the
# container stays locked. This machine takes its lease back without waiting for it, and
# another one is refused before it has run out. Then all that was fsynced is there.
# cases: dir1 dir2 swift1 swift2
# full: dir2 swift1
# swift1 needs: swift
# swift2 needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

rounds=3
if [[ $full ]]; then rounds=10; fi
# The load is slow enough for the files to be synced beside it.
operations_per_second=200
place=${TEST_CASE%[12]} format=${TEST_CASE: -1}
if [[ $place == swift ]]; then rounds=1 operations_per_second=20; fi

volumes "$place" vol
swiftnbd setup vol --size 96M --format "$format"
D=$(swiftnbd attach vol)
mkfs.ext4 -q "$D"
mkdir "$work/mnt"
mount "$D" "$work/mnt"
mkdir "$work/mnt/files"
sync -f "$work/mnt"
touch "$TEST_DIR/fsynced"

# files ROUND: writes files, each synced before its checksum is noted.
files() {
    { local -; set +x; } 2>/dev/null
    local file number
    for ((number = 0; number < 100000; number++)); do
        file=files/$1-$number
        # shellcheck disable=SC3028
        head -c $((1 + SRANDOM % 60000)) /dev/urandom >"$work/content"
        dd if="$work/content" of="$work/mnt/$file" bs=64K conv=fsync status=none || return 0
        echo "$(sha256sum "$work/content" | cut -d ' ' -f 1)  $file" >>"$TEST_DIR/fsynced"
    done
}

# load ROUND: direct writes by fio, a file buffered and never synced, and files.
load() {
    fio --name=load --filename="$work/mnt/fio" --size=24M --direct=1 --ioengine=libaio \
        --iodepth=32 --rw=randwrite --bsrange=4k-128k --fsync=64 --time_based --runtime=1d \
        --rate_iops=$operations_per_second >"$work/fio" 2>&1 &
    fio=$!
    files "$1" &
    files=$!
    (set +x; while head -c 1M /dev/zero | tr '\0' "$1" >"$work/mnt/buffered"; do :; done) &
    buffered=$!
}

enough() { (($(wc -l <"$TEST_DIR/fsynced") >= $1)); }
all_there() {
    (cd "$work/mnt" && sha256sum --quiet -c "$TEST_DIR/fsynced")
    wc -l "$TEST_DIR/fsynced"
}

for ((round = 1; round <= rounds; round++)); do
    pid=$(pid_of vol)
    guardian=$(guardian_of "$pid")
    locked=$(lock_of vol)
    contains "$locked" "locked by $(hostname):$pid since "
    before=$(wc -l <"$TEST_DIR/fsynced")
    load $round
    wait_for 200 enough $((before + 5 + SRANDOM % 8))
    cat "/sys/block/${D#/dev/}/inflight"

    kill -KILL "$pid"
    for process in "$fio" "$files" "$guardian"; do wait_for 60 gone "$process"; done
    no wait "$fio"
    wait "$files"
    expect 1 dd if="$D" of=/dev/null iflag=direct bs=4K count=1
    contains "$err" 'Input/output error'
    # What stays in the page cache meets no error, so this may go on.
    kill "$buffered" || true
    wait_for 60 gone "$buffered"
    umount -l "$work/mnt"
    wait_for 60 no connected "$D"

    equal 'state' "$(state_of vol)" dead
    equal 'lock' "$(lock_of vol)" "$locked"
    expect 3 elsewhere attach vol
    contains "$err" vol "$(hostname):$pid since " --takeover
    # In Swift late requests of the dead may still arrive, and overwrite objects of
    # format 1: a pause, and a word.
    expect 0 swiftnbd attach vol
    D=$out
    case $TEST_CASE in
        swift1) contains "$err" 'waiting 30 s for requests' ;;
        *) equal notice "$err" '' ;;
    esac
    mount "$D" "$work/mnt"
    all_there
    umount "$work/mnt"
    expect 0 fsck.ext4 -fn "$D"
    mount "$D" "$work/mnt"
done

: the guardian alone is killed
pid=$(pid_of vol)
kill -KILL "$(guardian_of "$pid")"
load last
wait_for 200 enough $(($(wc -l <"$TEST_DIR/fsynced") + 5))
equal 'state' "$(state_of vol)" attached
kill "$fio" "$buffered" "$files"
for process in "$fio" "$files" "$buffered"; do wait_for 60 gone "$process"; done
umount "$work/mnt"
expect 0 swiftnbd detach "$D"
detached vol "$D" "$pid"

# In Swift there is nothing new in it.
if [[ $place == swift ]]; then
    no_processes
    exit
fi

: attached again on another device, it is there once
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
kill -KILL "$pid"
wait_for 60 no connected "$D"
equal 'state' "$(state_of vol)" dead
expect 0 swiftnbd attach vol /dev/nbd9
equal 'devices' "$(entry vol 1)" /dev/nbd9
expect 0 swiftnbd detach vol
equal 'devices' "$(entry vol 1)" ''

: detach tidies up after a dead daemon
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
kill -KILL "$pid"
wait_for 60 no connected "$D"
expect 1 swiftnbd detach "$D"
contains "$err" "$D" vol "$pid" dead 'attach vol'
expect 4 swiftnbd detach "$D"
expect 0 swiftnbd attach vol
D=$out
expect 0 fsck.ext4 -fn "$D"
mount "$D" "$work/mnt"
all_there
umount "$work/mnt"
expect 0 swiftnbd detach vol
equal 'lock' "$(lock_of vol)" unlocked
no_processes
