#!/usr/bin/env bash
# The daemon is killed in the middle of an untar and of a build on ext4, with a journal:
# another one takes the device over, the work goes on after a pause and completes, the
# tree is what it should be, the check of the file system finds nothing. Without another
# daemon the device fails after its time. Then a journal that is lost, damaged, cut off,
# another volume's, another's of this volume, on a full disk; a volume that another
# machine takes without its journal; and what a person is told of each.
# needs: swift timeout=900
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

rounds=2
if [[ $full ]]; then rounds=10; fi
# shellcheck disable=SC2034
lease=20s
journals=$work/journals
mkdir "$journals"
volumes swift vol other
# A journal has room for twice as much, and 8 MiB.
sed -i '/^\[volumes/a dirty = "16MiB"' "$config"
swiftnbd setup vol --size 192M
swiftnbd setup other --size 16M
journal=$journals/vol.journal

has_log() { (($(grep -c -- "$1" "$daemon_log") >= ${2:-1})); }

# ---- killed at work ----

: a tree to unpack, and something to build
mkdir "$work/tree" "$work/mnt"
for ((i = 0; i < 12; i++)); do
    mkdir "$work/tree/$i"
    for ((j = 0; j < 60; j++)); do
        head -c $((1 + SRANDOM % 30000)) /dev/urandom >"$work/tree/$i/$j"
    done
done
tar -C "$work" -cf "$work/tree.tar" tree
D=$(swiftnbd attach vol)
mkfs.ext4 -q "$D"
mount "$D" "$work/mnt"

# unpack NUMBER: with a sync now and then, as a build or a package manager does it; then
# everything is put together anew from what was unpacked.
unpack() {
    { local -; set +x; } 2>/dev/null
    local to=$work/mnt/$1 i
    mkdir "$to"
    tar -C "$to" -xf "$work/tree.tar" --checkpoint=20 --checkpoint-action=exec='sync -f .' || return 1
    for ((i = 0; i < 12; i++)); do
        cat "$to/tree/$i"/* >"$to/all-$i.new" && sync "$to/all-$i.new" &&
            mv "$to/all-$i.new" "$to/all-$i" || return 1
    done
    echo "$1" >"$work/unpacked-$1"
}

for ((round = 1; round <= rounds; round++)); do
    unpack "$round" &
    job=$!
    kills=0
    while [[ ! -e $work/unpacked-$round ]] && ((kills < 2)); do
        pid=$(pid_of vol)
        wait_for 60 connected "$D"
        sleep "0.$((RANDOM % 10))" || true
        sleep $((RANDOM % 3))
        kill -KILL "$pid"
        wait_for 20 gone "$pid"
        equal state "$(state_of vol)" dead
        expect 0 swiftnbd attach vol
        equal device "$out" "$D"
        kills=$((kills + 1))
    done
    wait "$job"
    diff -r "$work/tree" "$work/mnt/$round/tree"
    for ((i = 0; i < 12; i++)); do
        cat "$work/tree/$i"/* | cmp - "$work/mnt/$round/all-$i"
    done
    umount "$work/mnt"
    expect 0 fsck.ext4 -fn "$D"
    mount "$D" "$work/mnt"
    rm -r "${work:?}/mnt/$round"
done
wait_for 10 has_log 'taken over from the daemon that died' $rounds
no_io_errors() {
    { local -; set +x; } 2>/dev/null
    # What the driver says when a connection ends is no error of a request.
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|aborted journal'
}
no_io_errors

: a restart goes on with the journal, and so does whoever comes after it
umount "$work/mnt"
letter() { head -c 4096 /dev/zero | tr '\0' "$1"; }
letter r | dd of="$D" bs=4096 seek=3 oflag=direct conv=fsync,notrunc status=none
expect 0 swiftnbd restart vol
test -e "$journal"
letter s | dd of="$D" bs=4096 seek=4 oflag=direct conv=fsync,notrunc status=none
pid=$(pid_of vol)
kill -KILL "$pid"
wait_for 20 gone "$pid"
expect 0 swiftnbd attach vol
equal device "$out" "$D"
cmp <(dd if="$D" bs=4096 skip=3 count=2 iflag=direct status=none) <(letter r; letter s)

: detach has all of it in Swift, and no journal left
pid=$(pid_of vol)
expect 0 swiftnbd detach vol
detached vol "$D" "$pid"
equal journal "$(find "$journals" -name 'vol*')" ''

# ---- nobody comes ----

: the device fails when its time is over
sed -i '/^\[volumes/a reattach_timeout = "4s"' "$config"
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
head -c 4096 /dev/zero | tr '\0' w |
    dd of="$D" bs=4096 seek=5 oflag=direct conv=fsync,notrunc status=none
kill -KILL "$pid"
expect 1 dd if="$D" of=/dev/null iflag=direct bs=4K count=1
contains "$err" 'Input/output error'
wait_for 60 no connected "$D"
wait_for 60 no_processes

# block N: what letter it is of.
block() {
    dd if="$D" bs=4096 skip="$1" count=1 iflag=direct status=none | tr '\0' . | tr -s a-z. | head -c 3
}

# ---- the journal ----

: lost, damaged, cut off, of another volume: said, and nothing is changed
# left PID: it is killed, and the device has failed.
left() {
    kill -KILL "$1"
    wait_for 60 no connected "$D"
    wait_for 60 no_processes
}
D=$(swiftnbd attach vol)
equal block "$(block 5)" w
pid=$(pid_of vol)
lab stop proxy
for i in 1 2 3; do
    head -c 4096 /dev/zero | tr '\0' x |
        dd of="$D" bs=4096 seek=$((5 + i)) oflag=direct conv=notrunc status=none
done
# A flush is answered although Swift is away.
expect 0 dd if=/dev/null of="$D" conv=fsync,notrunc status=none
head -c 4096 /dev/zero | tr '\0' y |
    dd of="$D" bs=4096 seek=9 oflag=direct conv=fsync,notrunc status=none
left "$pid"
lab restart proxy
cp "$journal" "$work/whole"

rm "$journal"
expect 1 swiftnbd attach vol
contains "$err" "$journal" 'not there' --takeover
: >"$journal"
expect 1 swiftnbd attach vol
contains "$err" "$journal" 'no journal of swiftnbd'
head -c 100000 "$work/whole" >"$journal"
expect 1 swiftnbd attach vol
contains "$err" "$journal" 'cut off'
D2=$(swiftnbd attach other)
other=$(pid_of other)
cp "$journals/other.journal" "$work/others"
kill -KILL "$other"
wait_for 150 no connected "$D2"
cp "$work/others" "$journal"
expect 1 swiftnbd attach vol
contains "$err" "$journal" 'another volume'
cp "$work/whole" "$journal"
# The first of its entries that Swift does not have.
grep -abo xxxxxxxx "$journal" >"$work/places"
at=$(head -n 1 "$work/places" | cut -d : -f 1)
printf 'Z' | dd of="$journal" bs=1 seek=$((at + 100)) conv=notrunc status=none
expect 1 swiftnbd attach vol
contains "$err" "$journal" damaged --takeover
equal 'what is kept' "$(find "$journals" -name '*kept*')" ''

: whole again, it is all there
cp "$work/whole" "$journal"
expect 0 swiftnbd attach vol
D=$out
equal 'block 5' "$(block 5)" w
equal 'block 6' "$(block 6)" x
equal 'block 8' "$(block 8)" x
equal 'block 9' "$(block 9)" y

# Then Swift has it, too.
expect 0 swiftnbd detach vol

: another machine takes it without the journal, as announced
expect 0 swiftnbd attach vol
D=$out
pid=$(pid_of vol)
lab stop proxy
head -c 4096 /dev/zero | tr '\0' q |
    dd of="$D" bs=4096 seek=9 oflag=direct conv=fsync,notrunc status=none
left "$pid"
lab restart proxy
sed "s|$journals|$work/elsewhere|" "$config" >"$work/there.toml"
chmod 600 "$work/there.toml"
second_machine "$work/there.toml"
expect 3 there attach vol
contains "$err" "$(hostname)" journal --takeover
expect 1 swiftnbd detach "$D"
expect 0 there attach vol --takeover
D=$out
contains "$err" lost
equal 'block 8' "$(block 8)" x
equal 'block 9' "$(block 9)" y
head -c 4096 /dev/zero | tr '\0' e |
    dd of="$D" bs=4096 seek=10 oflag=direct conv=fsync,notrunc status=none
expect 0 there detach vol
kill "$second"

: the first one comes back: nothing of its journal is in the volume, and it is kept
expect 0 swiftnbd attach vol
D=$out
equal 'block 9' "$(block 9)" y
equal 'block 10' "$(block 10)" e
wait_for 10 has_log "$journal is a journal of this volume that it does not name any more"
test -e "$journal.kept-1"
expect 0 swiftnbd detach vol

: no room for a journal: flushes wait for Swift
mkdir "$work/full"
mount -t tmpfs -o size=1M tmpfs "$work/full"
sed -i "s|$journals/vol|$work/full/vol|" "$config"
expect 0 swiftnbd attach vol
D=$out
wait_for 10 has_log "no journal can be made at $work/full/vol.journal"
pid=$(pid_of vol)
head -c 4096 /dev/zero | tr '\0' f |
    dd of="$D" bs=4096 seek=9 oflag=direct conv=fsync,notrunc status=none
kill -KILL "$pid"
wait_for 60 no connected "$D"
expect 0 swiftnbd attach vol
D=$out
equal 'block 9' "$(block 9)" f
expect 0 swiftnbd detach vol
expect 0 swiftnbd attach other
expect 0 swiftnbd detach other
no_processes
