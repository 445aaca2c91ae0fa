#!/usr/bin/env bash
# What is discarded leaves the container (of format 1) and reads as zeros: blkdiscard of a part
# and of the whole device, blkdiscard -z, and fstrim of ext4.
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

object=$((256 << 10))
volumes swift vol
swiftnbd setup vol --size 64M --format 1 --object-size 256K
D=$(swiftnbd attach vol)
pattern 1 16M >"$work/pattern"

# objects_are COUNT: so many are in the container.
objects_are() { equal objects "$(object_count vol)" "$1"; }
at_most() { (($(object_count vol) <= $1)); }

fill() { dd if="$work/pattern" of="$D" oflag=direct bs=1M conv=fsync status=none; }

# same OFFSET LENGTH, zeros OFFSET LENGTH: what is in that range of the device
# (bytes) is the pattern, is zeros.
part() { dd if="$1" iflag=direct,skip_bytes,count_bytes skip="$2" count="$3" bs=1M status=none; }
same() { cmp <(part "$D" "$1" "$2") <(tail -c +$(($1 + 1)) "$work/pattern" | head -c "$2"); }
zeros() { cmp -n "$2" <(part "$D" "$1" "$2") /dev/zero; }

: a part
objects_are 0
fill
objects_are 64
blkdiscard -o $((4 << 20)) -l $((8 << 20)) "$D"
sync "$D"
objects_are 32
same 0 $((4 << 20))
zeros $((4 << 20)) $((8 << 20))
same $((12 << 20)) $((4 << 20))

: what lies beside a discarded range stays, if it is in the same object
fill
blkdiscard -o $((object / 2)) -l $((2 * object)) "$D"
sync "$D"
objects_are 63
same 0 $((object / 2))
zeros $object $object
same $((object * 5 / 2)) $(((16 << 20) - object * 5 / 2))

: the whole device
blkdiscard -f "$D"
sync "$D"
objects_are 0
zeros 0 $((64 << 20))

: blkdiscard -z
fill
objects_are 64
blkdiscard -z -o 0 -l $((8 << 20)) "$D"
sync "$D"
objects_are 32
zeros 0 $((8 << 20))
same $((8 << 20)) $((8 << 20))
blkdiscard -z -o $((8 << 20)) -l $((8 << 20)) "$D"
sync "$D"
objects_are 0
zeros 0 $((64 << 20))

: fstrim
mkdir "$work/mnt"
mkfs.ext4 -q "$D"
mount "$D" "$work/mnt"
sync -f "$work/mnt"
empty=$(object_count vol)
pattern 2 20M >"$work/mnt/file"
pattern 3 4M >"$work/mnt/kept"
sync -f "$work/mnt"
(($(object_count vol) >= empty + 24 * 4))
rm "$work/mnt/file"
sync -f "$work/mnt"
fstrim -v "$work/mnt"
sync -f "$work/mnt"
at_most $((empty + 4 * 4 + 16))
umount "$work/mnt"
swiftnbd detach "$D"

: attached anew
D=$(swiftnbd attach vol)
expect 0 fsck.ext4 -fn "$D"
mount "$D" "$work/mnt"
cmp "$work/mnt/kept" <(pattern 3 4M)
umount "$work/mnt"
blkdiscard -f "$D"
no_io_errors "$D"
swiftnbd detach "$D"
objects_are 0
no_processes
