#!/usr/bin/env bash
# ext4 and xfs on two volumes attached at once: a real tree of files is the same
# after unmounting and attaching again, and both file systems are clean.
# cases: dir swift
# needs: mem=1536M
# swift needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

size=96M megabytes=40
if [[ $TEST_CASE == swift ]]; then size=48M megabytes=12; fi
if [[ $full ]]; then size=512M megabytes=200; fi

volumes "$TEST_CASE" ext xfs
swiftnbd setup ext --size "$size" --object-size 256K
swiftnbd setup xfs --size $((${size%M} + 300))M --object-size 1M
ext=$(swiftnbd attach ext)
xfs=$(swiftnbd attach xfs)
[[ $ext != "$xfs" ]]
swiftnbd status

mkdir "$work/ext" "$work/xfs"
mkfs.ext4 -q "$ext"
mkfs.xfs -q "$xfs"
mount "$ext" "$work/ext"
mount "$xfs" "$work/xfs"

# Files of this system, so many MB of them, links as well.
(find /usr/share /usr/include /usr/lib -xdev \( -type f -size -4M -o -type l \) -printf '%s %p\n' ||
    true) 2>/dev/null |
    awk -v most=$((megabytes << 20)) '{sum += $1; if (sum > most) exit; print substr($0, length($1) + 2)}' \
        >"$work/files"
wc -l "$work/files"
tar -C / -c --no-recursion -T "$work/files" 2>/dev/null >"$work/tree.tar"
(($(stat -c %s "$work/tree.tar") > megabytes * 9 << 16))
tar -C "$work/ext" -x -f "$work/tree.tar"
tar -C "$work/xfs" -x -f "$work/tree.tar"
umount "$work/ext" "$work/xfs"
no_io_errors "$ext"
no_io_errors "$xfs"

ext_pid=$(pid_of ext) xfs_pid=$(pid_of xfs)
expect 0 swiftnbd detach "$ext"
expect 0 swiftnbd detach xfs
detached ext "$ext" "$ext_pid"
detached xfs "$xfs" "$xfs_pid"

# The other way round, so that each is on the other's device.
xfs=$(swiftnbd attach xfs)
ext=$(swiftnbd attach ext)
expect 0 fsck.ext4 -fn "$ext"
expect 0 xfs_repair -n "$xfs"
mount "$ext" "$work/ext"
mount "$xfs" "$work/xfs"
tar -C "$work/ext" --compare -f "$work/tree.tar"
tar -C "$work/xfs" --compare -f "$work/tree.tar"
for kind in ext xfs; do
    equal "files on $kind" "$(find "$work/$kind" ! -type d ! -path '*/lost+found/*' | wc -l)" \
        "$(wc -l <"$work/files")"
done
umount "$work/ext" "$work/xfs"
no_io_errors "$ext"
no_io_errors "$xfs"
swiftnbd detach "$ext"
swiftnbd detach "$xfs"
no_processes
