#!/usr/bin/env bash
# What attach, detach, lock and unlock refuse: each with its exit status, a
# message that names the holder, and nothing changed.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes dir vol other
swiftnbd setup vol --size 64M
swiftnbd setup other --size 64M --format 1

: attach returns, and the daemon keeps nothing of the caller
mkfifo "$work/fifo"
exec 7<>"$work/fifo"
cd "$work"
D=$(swiftnbd attach vol | cat)
cd /
exec 7>&-
[[ -b $D ]]
pid=$(pid_of vol)
for process in "$pid" $(guardian_of "$pid"); do
    equal "working directory of $process" "$(readlink "/proc/$process/cwd")" /
    open=$(find "/proc/$process/fd" -type l -printf '%f -> %l\n')
    echo "$open"
    [[ $open != *"$work"* ]] || fail "$process has a descriptor of the caller's"
    equal "stderr of $process" "$(readlink "/proc/$process/fd/2")" /dev/null
done
# The pipe to cat and the guest's own output are pipes too: all that the daemon
# has is its guardian's.
equal 'pipes of the daemon' "$(find "/proc/$pid/fd" -lname 'pipe:*' | wc -l)" 1
equal 'guardians' "$(guardian_of "$pid" | wc -l)" 1

: status
expect 0 swiftnbd status vol
contains "$out" "$D" vol 64MiB "$pid" attached
expect 0 swiftnbd status "$D" --json
python3 -S - "$work/out" "$D" "$pid" <<'END'
import json, sys, time
[entry] = json.load(open(sys.argv[1]))
assert entry["device"] == sys.argv[2] and entry["pid"] == int(sys.argv[3]), entry
assert entry["volume"] == entry["container"] == "vol", entry
assert entry["size"] == 64 << 20 and entry["block_size"] == 4096, entry
assert entry["state"] == "attached" and entry["read_only"] is False, entry
assert entry["dirty_bytes"] >= 0 and abs(entry["since"] - time.time()) < 600, entry
END
expect 4 swiftnbd status nothing
equal 'backend' "$(<"/sys/block/${D#/dev/}/backend")" swiftnbd:vol
expect 0 swiftnbd list
contains "$out" "vol size=67108864 (version=2, locked by $(hostname):$pid since " \
    'other objects=1024 size=67108864 (version=1, unlocked)'

holder="$(hostname):$pid since $(date -u +%Y-)"
held=$(lock_of vol)

: a second attach, from here and from another host
expect 3 swiftnbd attach vol
contains "$err" vol "$holder" UTC hint:
expect 3 elsewhere attach vol
contains "$err" vol "$holder" UTC 's ago' --takeover
equal 'lock' "$(lock_of vol)" "$held"
equal 'volumes attached' "$(swiftnbd status | grep -c attached)" 1

: devices
expect 3 swiftnbd attach other "$D"
contains "$err" "$D" "$pid" swiftnbd:vol
expect 4 swiftnbd attach other /dev/nbd99
contains "$err" /dev/nbd99 'does not exist'
expect 2 swiftnbd attach other /dev/sda
equal 'lock of other' "$(lock_of other)" unlocked
expect 0 swiftnbd attach other
E=$out
[[ $E == /dev/nbd* && $E != "$D" ]]
equal 'size' "$(blockdev --getsize64 "$E")" $((64 << 20))
expect 0 swiftnbd detach other

: without root
chmod 644 "$config"
chmod 755 "$work"
for command in 'attach other' "detach $D" status; do
    # shellcheck disable=SC2086
    expect 5 setpriv --reuid=65534 --regid=65534 --clear-groups \
        "$TEST_SWIFTNBD" --config "$config" $command
    contains "$err" root
done
chmod 600 "$config"
equal 'lock of other' "$(lock_of other)" unlocked

: a mounted device
mkdir "$work/a mount"
mkfs.ext4 -q "$D"
mount "$D" "$work/a mount"
for target in "$D" vol; do
    expect 3 swiftnbd detach "$target"
    contains "$err" "$D" "mounted on $work/a mount"
done
seq 100000 >"$work/a mount/file"
sync "$work/a mount/file"
equal 'state' "$(state_of vol)" attached
no_io_errors "$D"
umount "$work/a mount"

: a device that is mounted where nobody sees it
# shellcheck disable=SC2016
unshare --mount bash -c 'mount "$1" "$2" && touch "$3" && exec sleep infinity' \
    bash "$D" "$work/a mount" "$work/mounted" &
mounter=$!
wait_for 60 test -e "$work/mounted"
expect 3 swiftnbd detach "$D"
contains "$err" "$D" 'another program, or mounted in another namespace'
equal 'state' "$(state_of vol)" attached
kill $mounter
wait $mounter || true

: lock and unlock
expect 3 swiftnbd unlock vol
contains "$err" vol "$D" "$pid"
equal 'lock' "$(lock_of vol)" "$held"
expect 0 swiftnbd lock other
contains "$(lock_of other)" 'locked by ctl since '
expect 3 swiftnbd lock other
expect 3 swiftnbd attach other
contains "$err" other 'locked by ctl since ' 'unlock other'
expect 0 swiftnbd unlock other
equal 'lock of other' "$(lock_of other)" unlocked
expect 1 swiftnbd unlock other

: what is not attached
expect 4 swiftnbd detach "$E"
expect 4 swiftnbd detach other
expect 4 swiftnbd detach /dev/nbd99
expect 4 swiftnbd attach nosuchvolume

: read-only
dd if="$D" iflag=direct bs=1M count=1 status=none >"$work/before"
expect 0 swiftnbd detach vol
detached vol "$D" "$pid"
D=$(swiftnbd attach vol --read-only)
equal 'read-only' "$(blockdev --getro "$D")" 1
expect 1 dd if=/dev/urandom of="$D" oflag=direct bs=1M count=1
expect 1 blkdiscard -f "$D"
dd if="$D" iflag=direct bs=1M count=1 status=none | cmp - "$work/before"
contains "$(swiftnbd status vol)" read-only
mount -o ro "$D" "$work/a mount"
cmp "$work/a mount/file" <(seq 100000)
umount "$work/a mount"
expect 3 swiftnbd attach vol
expect 0 swiftnbd detach vol
equal 'lock' "$(lock_of vol)" unlocked

: detach --force of a mounted device
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
mount "$D" "$work/a mount"
seq 50000 >"$work/a mount/synced"
sync "$work/a mount/synced"
seq 50000 >"$work/a mount/lost"
expect 0 swiftnbd detach --force "$D"
contains "$err" "mounted on $work/a mount" lost
equal 'lock' "$(lock_of vol)" unlocked
gone "$pid"
umount -l "$work/a mount"
wait_for 60 no connected "$D"
D=$(swiftnbd attach vol "$D")
mount "$D" "$work/a mount"
cmp "$work/a mount/synced" <(seq 50000)
umount "$work/a mount"
expect 0 fsck.ext4 -fn "$D"
expect 0 swiftnbd detach vol
expect 0 swiftnbd status
contains "$out" 'nothing is attached'
no_processes
