#!/usr/bin/env bash
# SIGTERM and SIGINT to a daemon, and a disconnection from elsewhere: nothing
# that was answered is lost, and the end is as clean as detach's.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes dir vol
swiftnbd setup vol --size 64M
D=$(swiftnbd attach vol)
mkfs.ext4 -q "$D"
swiftnbd detach vol
mkdir "$work/mnt"
said() { grep -q "$@" "$daemon_log"; }

for signal in TERM INT; do
    : "$signal" while mounted
    : >"$daemon_log"
    D=$(swiftnbd attach vol)
    pid=$(pid_of vol)
    mount "$D" "$work/mnt"
    pattern 1 4M >"$work/mnt/before-$signal"
    kill "-$signal" "$pid"
    wait_for 60 said "$D is mounted on $work/mnt"
    equal 'state' "$(state_of vol)" attached
    contains "$(lock_of vol)" "locked by $(hostname):$pid"
    pattern 2 4M >"$work/mnt/after-$signal"
    sync "$work/mnt/after-$signal"
    kill "-$signal" "$pid"
    pattern 3 4M >"$work/mnt/later-$signal"
    equal 'state' "$(state_of vol)" attached
    umount "$work/mnt"
    wait_for 60 gone "$pid"
    detached vol "$D" "$pid"
    said 'everything is durable, the container unlocked'
    no_io_errors "$D"

    D=$(swiftnbd attach vol)
    expect 0 fsck.ext4 -fn "$D"
    mount -o ro "$D" "$work/mnt"
    cmp "$work/mnt/before-$signal" <(pattern 1 4M)
    cmp "$work/mnt/after-$signal" <(pattern 2 4M)
    cmp "$work/mnt/later-$signal" <(pattern 3 4M)
    umount "$work/mnt"
    : "$signal" while nobody holds it
    pid=$(pid_of vol)
    kill "-$signal" "$pid"
    wait_for 60 gone "$pid"
    detached vol "$D" "$pid"
done

: nothing but the page cache has the last writes
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
pattern 4 4M | dd of="$D" bs=1M seek=32 iflag=fullblock status=none
kill "$pid"
wait_for 60 gone "$pid"
detached vol "$D" "$pid"
D=$(swiftnbd attach vol)
cmp <(dd if="$D" bs=1M skip=32 count=4 status=none) <(pattern 4 4M)

: disconnected from elsewhere
pid=$(pid_of vol)
pattern 5 4M | dd of="$D" oflag=direct bs=64K seek=512 iflag=fullblock status=none
nbd-client -d "$D"
wait_for 60 gone "$pid"
detached vol "$D" "$pid"
D=$(swiftnbd attach vol)
cmp <(dd if="$D" bs=1M skip=32 count=4 status=none) <(pattern 5 4M)

: the caller of attach in the foreground
swiftnbd detach "$D"
"$TEST_SWIFTNBD" --config "$config" attach --foreground vol >"$work/device" 2>"$daemon_log" &
pid=$!
wait_for 60 test -s "$work/device"
equal 'device' "$(<"$work/device")" "$D"
kill -INT $pid
wait $pid
detached vol "$D" "$pid"
no_processes
