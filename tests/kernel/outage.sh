#!/usr/bin/env bash
# Swift goes away for 20 s under fio, or forgets every token: I/O waits and goes
# on, no error reaches anybody, and all that was written is there afterwards.
# cases: stop freeze revoke
# needs: swift timeout=600
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

outage_seconds=20
volumes swift vol
# What Swift goes on with after it was frozen is harmful to format 1 most of all.
format=2
if [[ $TEST_CASE == freeze ]]; then format=1; fi
swiftnbd setup vol --size 16M --format $format
D=$(swiftnbd attach vol)

# job SEED: fio's options for one pass over the device, written, then verified.
job() {
    echo --name=pass --filename="$D" --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite \
        --bsrange=4k-256k --fsync=32 --verify=crc32c --verify_fatal=1 --randseed="$1"
}

# Passes, one after another, until told to stop. The last one's number is in
# $work/pass, those that ended well in $work/passed.
passes() {
    { local -; set +x; } 2>/dev/null
    local pass
    for ((pass = 1; ; pass++)); do
        echo $pass >"$work/pass"
        # shellcheck disable=SC2046
        fio $(job $pass) >"$work/fio" 2>&1 || { cat "$work/fio"; return 1; }
        echo $pass >>"$work/passed"
        [[ ! -e $work/enough ]] || return 0
    done
}
passes &
fio=$!
passed() { (($(wc -l <"$work/passed") >= $1)); }
writes() { awk '{print $5}' "/sys/block/${D#/dev/}/stat"; }
# more WRITES: so many have been done since $before.
more() { (($(writes) >= before + $1)); }
before=$(writes)
wait_for 120 more 32

# outage SERVER: it is away for a while, during which fio goes on waiting.
outage() {
    local end pass
    pass=$(<"$work/pass")
    if [[ $TEST_CASE == freeze ]]; then lab freeze "$1"; else lab stop "$1"; fi
    end=$((SECONDS + outage_seconds))
    until ((SECONDS >= end)); do
        before=$(writes)
        sleep 1
    done
    # At most the pass whose writes were done could be completed, from the cache.
    (($(<"$work/pass") <= pass + 1)) || fail 'fio did not need Swift'
    equal 'writes at the end of the outage' "$(writes)" "$before"
    kill -0 $fio || fail 'fio has ended'
    equal 'state' "$(state_of vol)" attached
    if [[ $TEST_CASE == freeze ]]; then lab thaw "$1"; else lab restart "$1"; fi
    before=$(writes)
    wait_for 120 more 32
}

case $TEST_CASE in
    revoke)
        for ((round = 0; round < ${full:+20} + 5; round++)); do
            before=$(writes)
            lab revoke
            wait_for 120 more 64
        done
        ;;
    *)
        servers=(proxy)
        if [[ $full ]]; then servers=(proxy object proxy object); fi
        for server in "${servers[@]}"; do outage "$server"; done
        ;;
esac

touch "$work/enough"
wait_for 300 gone $fio
wait $fio
cat "$work/passed"
# "Possible stuck request" is what the kernel should say, and nothing else.
dmesg | grep -w "${D#/dev/}"
no_io_errors "$D"
pid=$(pid_of vol)
swiftnbd detach "$D"
detached vol "$D" "$pid"

D=$(swiftnbd attach vol "$D")
# shellcheck disable=SC2046
fio $(job "$(<"$work/pass")") --verify_only
no_io_errors "$D"
swiftnbd detach "$D"
no_processes
