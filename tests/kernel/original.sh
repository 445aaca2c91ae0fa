#!/usr/bin/env bash
# A container as the original makes it, by plain HTTP requests, is the device byte
# for byte; what is written can be read by the original's rules. Its lock is respected.
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

object=65536 objects=48
# shellcheck disable=SC2034
lease=20s
volumes swift vol

# The content: some objects are missing, the last one among them, one is there
# and all zeros.
pattern 7 $((objects * object)) >"$work/disk"
missing=(0 5 6 7 20 47) zeros=9
for number in "${missing[@]}" $zeros; do
    dd if=/dev/zero of="$work/disk" bs=$object seek="$number" count=1 conv=notrunc status=none
done
is_missing() { [[ " ${missing[*]} " == *" $1 "* ]]; }
name() { printf 'disk.part/%08d' "$1"; }

http PUT vol -H 'X-Container-Meta-Swiftnbd-Version: 1' \
    -H "X-Container-Meta-Swiftnbd-Objects: $objects" \
    -H "X-Container-Meta-Swiftnbd-Object-Size: $object" \
    -H 'X-Container-Meta-Swiftnbd-Client;' -H 'X-Container-Meta-Swiftnbd-Last: ctl@1385853000.5'
split --bytes=$object --numeric-suffixes --suffix-length=8 "$work/disk" "$work/"
there=()
for ((number = 0; number < objects; number++)); do
    is_missing $number || there+=("$work/$(printf %08d $number)")
done
http PUT vol/disk.part/ -T "{$(IFS=,; echo "${there[*]}")}"
# What is not the disk's stays what it is.
http PUT vol/notes --data-binary 'not a part of the disk'
equal 'objects' "$(object_count vol)" $((objects - ${#missing[@]}))

: reading
expect 0 swiftnbd list
contains "$out" "vol objects=$objects size=$((objects * object)) (version=1, unlocked)"
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
equal 'size' "$(blockdev --getsize64 "$D")" $((objects * object))
cmp "$D" "$work/disk"
cmp <(dd if="$D" iflag=direct bs=512 skip=1000 count=999 status=none) \
    <(dd if="$work/disk" bs=512 skip=1000 count=999 status=none)
client=$(metadata vol Client)
[[ $client =~ ^$(hostname):$pid@[0-9]+$ ]]
equal 'Last while it is attached' "$(metadata vol Last)" 'ctl@1385853000.5'
# Reading has changed nothing.
equal 'objects' "$(object_count vol)" $((objects - ${#missing[@]}))

: writing
# write SEED OFFSET LENGTH: the same to the device and to what it should be.
write() {
    pattern "$1" "$3" >"$work/piece"
    dd if="$work/piece" of="$D" oflag=direct,seek_bytes bs=512 seek="$2" status=none
    dd if="$work/piece" of="$work/disk" oflag=seek_bytes bs=512 seek="$2" conv=notrunc status=none
}
write 1 0 512                                   # into a missing one
write 2 $((5 * object)) $object                 # a missing one whole
write 3 $((10 * object - 1024)) 4096            # across two, one of them zeros
write 4 $((30 * object + 512)) $((3 * object))  # the middle, the ends
write 5 $((objects * object - 512)) 512         # the very end
blkdiscard -o $((40 * object)) -l $((2 * object)) "$D"
dd if=/dev/zero of="$work/disk" bs=$object seek=40 count=2 conv=notrunc status=none
dd if=/dev/zero of="$D" oflag=direct bs=$object seek=42 count=1 status=none
dd if=/dev/zero of="$work/disk" bs=$object seek=42 count=1 conv=notrunc status=none
swiftnbd detach "$D"
detached vol "$D" "$pid"

: the original reads it
equal Version "$(metadata vol Version)" 1
equal Objects "$(metadata vol Objects)" $objects
equal Object-Size "$(metadata vol Object-Size)" $object
equal Client "$(metadata vol Client)" ''
equal Last "$(metadata vol Last)" "$client"
equal 'what is beside the disk' "$(http GET vol/notes)" 'not a part of the disk'
objects vol >"$work/names"
mkdir "$work/stored"
http GET "vol/{$(paste -sd , "$work/names")}" -o "$work/stored/#1" --create-dirs
truncate -s $((objects * object)) "$work/rebuilt"
while read -r found; do
    [[ $found =~ ^disk\.part/[0-9]{8}$ ]] || fail "an object named $found"
    number=$((10#${found#disk.part/}))
    ((number < objects)) || fail "an object named $found"
    equal "size of $found" "$(stat -c %s "$work/stored/$found")" $object
    dd if="$work/stored/$found" of="$work/rebuilt" bs=$object seek=$number conv=notrunc status=none
done <"$work/names"
cmp "$work/rebuilt" "$work/disk"
for number in 6 7 20 40 41 42; do
    no grep -qx "$(name $number)" "$work/names"
done

: and swiftnbd, again
D=$(swiftnbd attach vol)
cmp "$D" "$work/disk"
swiftnbd detach vol

: its lock is ours
http POST vol -H 'X-Container-Meta-Swiftnbd-Client: 10.0.0.7:10811@1385853264'
expect 3 swiftnbd attach vol
contains "$err" '10.0.0.7:10811 since 2013-11-30 23:14:24 UTC'
equal Client "$(metadata vol Client)" '10.0.0.7:10811@1385853264'
expect 0 swiftnbd list
contains "$out" 'locked by 10.0.0.7:10811 since 2013-11-30'
expect 0 swiftnbd unlock vol
equal Client "$(metadata vol Client)" ''
equal Last "$(metadata vol Last)" '10.0.0.7:10811@1385853264'

: but not that of a daemon of ours that gave it back, and died before it could unlock it
# killed_late: as the container is then.
killed_late() {
    D=$(swiftnbd attach vol)
    client=$(metadata vol Client)
    swiftnbd detach vol
    http POST vol -H "X-Container-Meta-Swiftnbd-Client: $client"
}
killed_late
expect 0 swiftnbd attach vol
contains "$err" 'gave it back, and did not unlock it' 'waiting 30 s'
cmp "$out" "$work/disk"
swiftnbd detach vol
second_machine
killed_late
# It may be about to, or go on in another program.
expect 3 there attach vol
contains "$err" "locked by ${client%@*} since" 'gave it back' 'is free in'
equal Client "$(metadata vol Client)" "$client"
attached() { there attach vol >"$work/device" 2>"$work/notice"; }
wait_for 60 attached
contains "$(<"$work/notice")" 'did not unlock it'
cmp "$(<"$work/device")" "$work/disk"
expect 0 there detach vol
equal Client "$(metadata vol Client)" ''
kill "$second"
wait "$second" || true
no_processes
