#!/usr/bin/env bash
# One hour (or TEST_SOAK seconds) of all that can go wrong, as chance has it: servers of a
# Swift with three replicas stop and freeze, daemons are killed, frozen and thawed,
# restarted, volumes change hands between two machines, by force too. Meanwhile each
# volume is written, synced and checked (soak.py). A file system with a journal in front
# of it sees no error in all that time; the other volumes, of either format, lose nothing
# that was synced, whoever has them, and nothing is written by one who has lost them. What
# happened is in $TEST_DIR/events.
# cases: minutes hour
# full: minutes
# soak: hour
# needs: swift replicas=3 mem=1536M
# minutes needs: timeout=900
# hour needs: timeout=6000
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

declare -A usual=([minutes]=240 [hour]=3600)
length=${TEST_SOAK:-${usual[$TEST_CASE]}}
# shellcheck disable=SC2034
lease=6s
moved=(log objects)
volumes swift files "${moved[@]}"
mkdir "$work/mnt"
# It may take long to attach while servers are away.
sed -i "/^\[volumes.files\]/a flush = \"local\"\njournal = \"$work/files.journal\"\nreattach_timeout = \"600s\"" "$config"
# Less than they hold: what is read comes from Swift, too.
for name in "${moved[@]}"; do sed -i "/^\[volumes.$name\]/a cache = \"4MiB\"" "$config"; done
swiftnbd setup files --size 256M
swiftnbd setup log --size 32M --format 2
swiftnbd setup objects --size 32M --format 1
RANDOM=$((TEST_SEED % 32768))

# event TEXT...: what has happened, and when.
event() {
    { local -; set +x; } 2>/dev/null
    printf '%5d s  %s\n' "$SECONDS" "$*" >>"$TEST_DIR/events"
}

# ---- two machines ----

second_machine

# on here|there ARGUMENT...: swiftnbd on that machine.
on() {
    { local -; set +x; } 2>/dev/null
    local machine=$1 patience=300
    shift
    if [[ $machine == here ]]; then swiftnbd "$@"; else there "$@"; fi
}
# other MACHINE
other() { if [[ $1 == here ]]; then echo there; else echo here; fi; }

# insist MACHINE ARGUMENT...: until it succeeds: servers of Swift are away, or somebody
# still has the volume. Leaves what it printed in $said.
insist() {
    { local -; set +x; } 2>/dev/null
    local deadline=$((SECONDS + 400)) times=0
    trap - ERR
    until on "$@" >"$work/said" 2>"$work/why"; do
        times=$((times + 1))
        mv "$work/why" "$work/before"
        ((SECONDS < deadline)) || fail "in vain, $times times: $*: $(<"$work/before")"
        sleep 1
    done
    trap on_error ERR
    said=$(<"$work/said")
    ((times == 0)) || event "    $*: failed $times times, at last: $(tr '\n' ' ' <"$work/before" | tail -c 200)"
}

# pid_on MACHINE NAME: its daemon's.
pid_on() {
    { local -; set +x; } 2>/dev/null
    on "$1" status | awk -v "name=$2" '$2 == name {print $4; n++} END {exit n > 1}'
}

# heard: what the kernel has said since the last call, kept: its own memory is short.
heard() {
    { local -; set +x; } 2>/dev/null
    dmesg --read-clear >>"$TEST_DIR/dmesg-all"
}

# ---- who writes what ----

declare -A machine_of=() device=() worker=() number=()
holders=0
# In format 1 a part of an object that is trimmed may stay.
declare -A zeroed=([log]=trim [objects]=zero)

# begin NAME PATH [trim|zero]: somebody begins to write it and to check it.
begin() {
    { local -; set +x; } 2>/dev/null
    holders=$((holders + 1))
    number[$1]=$holders
    python3 "$(dirname "$0")/soak.py" "$2" 8192 "$TEST_DIR/ledger-$1" "$holders" \
        "$work/stop-$holders" "${@:3}" >>"$TEST_DIR/workers" 2>&1 &
    worker[$1]=$!
}

# take NAME MACHINE [ARGUMENT...]: attached there, and written.
take() {
    local name=$1 machine=$2
    shift 2
    insist "$machine" attach "$name" "$@"
    device[$name]=$said
    machine_of[$name]=$machine
    begin "$name" "$said" "${zeroed[$name]}"
}

# synced NAME TIMES: whoever writes it now has synced so many blocks.
synced() { (($(grep -c "^s ${number[$1]} " "$TEST_DIR/ledger-$1") >= $2)); }

# ended NAME PID NUMBER STATUS: that worker ends so.
ended() {
    { local -; set +x; } 2>/dev/null
    local status=0
    wait_for 300 gone "$2"
    trap - ERR
    wait "$2" || status=$?
    trap on_error ERR
    ((status == $4)) || fail "holder $3 of $1 ended with $status instead of $4: $(tail -n 2 "$TEST_DIR/workers")"
}

# at_work NAME: its worker has met no error so far.
at_work() {
    { local -; set +x; } 2>/dev/null
    kill -0 "${worker[$1]}" || fail "who writes $1 has ended: $(tail -n 3 "$TEST_DIR/workers")"
}

# finish NAME: its worker syncs, and ends.
finish() {
    touch "$work/stop-${number[$1]}"
    ended "$1" "${worker[$1]}" "${number[$1]}" 0
}

# give_up MACHINE DEVICE NAME: a device that has lost its volume.
give_up() {
    { local -; set +x; } 2>/dev/null
    local pid
    pid=$(pid_on "$1" "$3")
    [[ $pid ]] || return 0
    on "$1" detach "$2" --force >/dev/null 2>"$work/why" || true
    wait_for 120 gone "$pid"
}

# ---- servers of Swift ----

# servers: one at a time, for a while, until $work/enough is there.
servers() {
    { local -; set +x; } 2>/dev/null
    local how back name seconds all=(proxy)
    for name in account container object; do all+=("$name"1 "$name"2 "$name"3); done
    until [[ -e $work/enough ]]; do
        # Half of the time it is an object server.
        name=object$((1 + SRANDOM % 3)) seconds=$((5 + SRANDOM % 40))
        ((SRANDOM % 2)) || name=${all[SRANDOM % ${#all[@]}]}
        how=stop back=restart
        ((SRANDOM % 2)) || { how=freeze && back=thaw; }
        [[ $name != proxy ]] || seconds=$((5 + SRANDOM % 15))
        event "    Swift: $how $name for $seconds s"
        lab "$how" "$name"
        sleep "$seconds"
        lab "$back" "$name"
        sleep $((SRANDOM % 15))
    done
}

# ---- what happens ----

declare -A happened=()

# It is served by another process, and goes on.
restarted() {
    insist "${machine_of[$1]}" restart "$1"
}

# Given back, and taken by the other machine.
given() {
    finish "$1"
    insist "${machine_of[$1]}" detach "$1"
    take "$1" "$(other "${machine_of[$1]}")"
}

# Its daemon dies; either machine takes it up.
killed() {
    local pid from=${machine_of[$1]} to=${machine_of[$1]}
    pid=$(pid_on "$from" "$1")
    at_work "$1"
    kill -KILL "$pid"
    ended "$1" "${worker[$1]}" "${number[$1]}" 5
    ((RANDOM % 2)) || to=$(other "$to")
    take "$1" "$to"
}

# Its daemon stands still; the other machine has it when the lease is over, and writes.
# Then the first one goes on.
frozen() {
    local pid from=${machine_of[$1]} old=${device[$1]} writer=${worker[$1]} was=${number[$1]}
    pid=$(pid_on "$from" "$1")
    at_work "$1"
    kill -STOP "$pid"
    take "$1" "$(other "$from")"
    wait_for 300 synced "$1" 20
    kill -CONT "$pid"
    ended "$1" "$writer" "$was" 5
    give_up "$from" "$old" "$1"
}

# The other machine takes it although somebody has it.
taken() {
    local from=${machine_of[$1]} old=${device[$1]} writer=${worker[$1]} was=${number[$1]}
    at_work "$1"
    take "$1" "$(other "$from")" --takeover
    ended "$1" "$writer" "$was" 5
    give_up "$from" "$old" "$1"
}

# The daemon of the file system dies, and another one takes the device over.
died() {
    local pid
    pid=$(pid_on here files)
    kill -KILL "$pid"
    wait_for 20 gone "$pid"
    sleep $((RANDOM % 5))
    insist here attach files
    equal device "$said" "${device[files]}"
}

# go_on NAME: what writes it goes on.
go_on() {
    { local -; set +x; } 2>/dev/null
    local before
    before=$(grep -c "^s ${number[$1]} " "$TEST_DIR/ledger-$1" || true)
    wait_for 300 synced "$1" $((before + 30))
}

# trees: files are unpacked, compared and removed in the file system, again and again.
trees() {
    { local -; set +x; } 2>/dev/null
    local times=0
    # The kernel is not to say each time that it does.
    echo 4 >/proc/sys/vm/drop_caches
    until [[ -e $work/enough ]]; do
        tar -C "$work/mnt" -xf "$work/tree.tar" || return 1
        sync -f "$work/mnt"
        echo 1 >/proc/sys/vm/drop_caches
        diff -r "$work/tree" "$work/mnt/tree" || return 1
        rm -r "$work/mnt/tree" || return 1
        times=$((times + 1))
    done
    event "trees: unpacked, compared and removed $times times"
}

: everything begins
insist here attach files
device[files]=$said machine_of[files]=here
mkfs.ext4 -q "$said"
mount "$said" "$work/mnt"
head -c 32M /dev/zero >"$work/mnt/blocks"
sync -f "$work/mnt"
mkdir "$work/tree"
for ((i = 0; i < 300; i++)); do
    head -c $((1 + SRANDOM % 30000)) /dev/urandom >"$work/tree/$i"
done
tar -C "$work" -cf "$work/tree.tar" tree
begin files "$work/mnt/blocks"
cat >"$work/fsx.toml" <<'END_OF_FSX'
flen = 1048576
[weights]
fsync = 1
fdatasync = 1
punch_hole = 5
truncate = 5
END_OF_FSX
nice "$TEST_FSX" -q -f "$work/fsx.toml" -S "$TEST_SEED" -P "$work" "$work/mnt/fsx" &
fsx=$!
trees &
trees=$!
for name in "${moved[@]}"; do take "$name" here; done
servers &
servers=$!

: and goes wrong
end=$((SECONDS + length))
while ((SECONDS < end)); do
    name=files
    case $((RANDOM % 9)) in
        0 | 1) what=died ;;
        2) what=restarted ;;
        *)
            name=${moved[RANDOM % 2]}
            kinds=(restarted given killed frozen taken)
            what=${kinds[RANDOM % 5]} ;;
    esac
    begun=$SECONDS
    was=${machine_of[$name]}
    event "$name ($was): $what"
    "$what" "$name"
    go_on "$name"
    happened[$what]=$((${happened[$what]:-0} + 1))
    event "$name (${machine_of[$name]}): written again, $((SECONDS - begun)) s later"
    kill -0 "$fsx" || fail 'fsx has ended'
    kill -0 "$trees" || fail 'the trees have ended'
    kill -0 "$servers" || fail 'nothing happens to the servers any more'
    for name in files "${moved[@]}"; do at_work "$name"; done
    heard
done

: enough
touch "$work/enough"
wait_for 200 gone "$servers"
wait "$servers"
wait_for 400 gone "$trees"
wait "$trees"
kill "$fsx"
wait "$fsx" || (($? == 143)) || fail 'fsx has found something'
for name in files "${moved[@]}"; do finish "$name"; done

: the file system is whole, and has seen no error
umount "$work/mnt"
expect 0 fsck.ext4 -fn "${device[files]}"
heard
complaints() {
    grep -E "EXT4-fs (error|warning)|aborted journal|read-only|lost|(I/O error).*${device[files]#/dev/}" \
        "$TEST_DIR/dmesg-all"
}
no complaints
insist here detach files

: what was synced is there, and nobody has synced what he had lost
# Everything, read on the other machine.
for name in "${moved[@]}"; do
    insist "${machine_of[$name]}" detach "$name"
    take "$name" "$(other "${machine_of[$name]}")"
    finish "$name"
    insist "${machine_of[$name]}" detach "$name"
    awk '$1 == "h" {last = $2} $1 != "h" && $1 != "w" && $2 != last {print "holder " last ": " $0; bad = 1}
        END {exit bad}' "$TEST_DIR/ledger-$name" || fail "two have held $name at a time"
done
insist there attach files
device[files]=$said
mount "$said" "$work/mnt"
begin files "$work/mnt/blocks"
finish files
umount "$work/mnt"
insist there detach files
for name in files "${moved[@]}"; do
    # Of format 1 nothing but its objects can be checked.
    if [[ $name == objects ]]; then
        expect 0 swiftnbd download "$name" "$work/image"
        rm "$work/image"
    else
        expect 0 swiftnbd check "$name" --quiet
    fi
    equal "lock of $name" "$(lock_of "$name")" unlocked
    event "$name: $(grep -c '^h' "$TEST_DIR/ledger-$name") holders, $(grep -c '^s' "$TEST_DIR/ledger-$name") blocks synced"
done
for what in "${!happened[@]}"; do event "$what: ${happened[$what]} times"; done
kill "$second"
wait "$second" || true
no_processes
