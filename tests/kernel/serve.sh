#!/usr/bin/env bash
# The kernel as a client of `serve`: nbd-client over TCP, one volume with a file
# system and its files, the same from another connection and after the server was
# started anew.
# needs: swift mem=1024M
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

size=48M megabytes=8
if [[ $full ]]; then size=512M megabytes=100; fi
volumes swift vol other
swiftnbd setup vol --size "$size"
swiftnbd setup other --size "$size" --format 1 --object-size 256K

# serve ARGUMENT...: in the background; $server is its process.
serve() {
    # An earlier server's address is not this one's.
    rm -f "$work/address"
    "$TEST_SWIFTNBD" "${options[@]}" serve "$@" </dev/null >"$work/address" &
    server=$!
    wait_for 60 grep -q . "$work/address"
    cat "$work/address"
}

stop() {
    kill -TERM "$server"
    wait "$server"
    equal 'lock of vol' "$(lock_of vol)" unlocked
}

modprobe nbd
D=$(free_device)
serve
unlocked vol
nbd-client -l 127.0.0.1 | tee "$work/list"
grep -q "^vol: " "$work/list"
grep -q "^other: " "$work/list"

# nbd-client takes no notice of the block size that it is told; with requests of
# other sizes this volume has nothing to do.
nbd-client -b 4096 127.0.0.1 -N vol "$D"
wait_for 30 connected "$D"
equal size "$(blockdev --getsize64 "$D")" $((${size%M} << 20))
contains "$(lock_of vol)" 'locked by'
unlocked other

# Files of this system, so many MB of them.
mkfs.ext4 -q "$D"
mkdir "$work/mnt"
mount "$D" "$work/mnt"
(find /usr/share /usr/include -xdev -type f -size -1M -printf '%s %p\n' || true) 2>/dev/null |
    awk -v most=$((megabytes << 20)) '{sum += $1; if (sum > most) exit; print substr($0, length($1) + 2)}' \
        >"$work/files"
tar -C / -c --no-recursion -T "$work/files" 2>/dev/null >"$work/tree.tar"
tar -C "$work/mnt" -x -f "$work/tree.tar"
sync
fstrim "$work/mnt"
umount "$work/mnt"
no_io_errors "$D"
before=$(sum "$D")
nbd-client -d "$D"
# Nobody uses it any more: another machine may have it.
wait_for 60 unlocked vol
(($(object_count vol seg/) > 0))

# Another connection, which leases it again; then another server.
nbd-client -b 4096 127.0.0.1 -N vol "$D"
wait_for 30 connected "$D"
equal content "$(sum "$D")" "$before"
nbd-client -d "$D"
stop
serve vol --read-only
nbd-client -b 4096 127.0.0.1 "$D"
wait_for 30 connected "$D"
equal 'read-only' "$(blockdev --getro "$D")" 1
equal content "$(sum "$D")" "$before"
expect 0 fsck.ext4 -fn "$D"
mount -o ro "$D" "$work/mnt"
tar -C "$work/mnt" --compare -f "$work/tree.tar"
umount "$work/mnt"
no_io_errors "$D"
nbd-client -d "$D"
stop

: as the users of 0.9.3 did it, by the old name and the old command
ln -s "$TEST_SWIFTNBD" "$work/swiftnbd-server"
(umask 077 && printf '[vol]\nusername = %s\npassword = %s\nauthurl = %s\n' \
    "$SWIFTNBD_LAB_USER" "$SWIFTNBD_LAB_KEY" "$auth_url" >"$work/secrets.conf")
"$work/swiftnbd-server" --secrets "$work/secrets.conf" -l "$work/server.log" \
    --pid-file "$work/server.pid" vol
server=$(<"$work/server.pid")
nbd-client -b 4096 127.0.0.1 10811 "$D"
wait_for 30 connected "$D"
mount "$D" "$work/mnt"
tar -C "$work/mnt" --compare -f "$work/tree.tar"
echo 'by the old name' >"$work/mnt/note"
umount "$work/mnt"
no_io_errors "$D"
nbd-client -d "$D"
wait_for 60 unlocked vol
kill -TERM "$server"
wait_for 60 gone "$server"
[[ ! -e $work/server.pid ]]
D=$(swiftnbd attach vol)
mount "$D" "$work/mnt"
equal note "$(<"$work/mnt/note")" 'by the old name'
umount "$work/mnt"
swiftnbd detach vol
