#!/usr/bin/env bash
# The daemon is replaced by another program every few seconds, under fio with
# verification and a database: nothing but a pause, which is told. What cannot take its
# place does not, and the old one goes on.
# cases: format1 format2
# full: format1
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

rounds=3
if [[ $full ]]; then rounds=40; fi
format=${TEST_CASE#format}
volumes swift vol other
swiftnbd setup vol --size 128M --format "$format"
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
mkfs.ext4 -q "$D"
mkdir "$work/mnt"
mount "$D" "$work/mnt"

# One that is encrypted; nobody is asked for its passphrase again.
secret() { swiftnbd "$@" --passphrase-fd 3 3<<<'correct horse battery staple'; }
if ((format == 2)); then secret setup other --size 16M --encrypt; else swiftnbd setup other --size 16M --format 1; fi
if ((format == 2)); then E=$(secret attach other); else E=$(swiftnbd attach other); fi
head -c 1M /dev/urandom >"$work/random"
dd if="$work/random" of="$E" bs=64K oflag=direct conv=fsync status=none

locked=$(lock_of vol)

: fio and a database, while the daemon is replaced again and again
fio --name=load --filename="$work/mnt/fio" --size=24M --direct=1 --ioengine=libaio --iodepth=16 \
    --rw=randrw --bsrange=4k-64k --fsync=64 --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
    --time_based --runtime=1d --rate_iops=60 >"$work/fio" 2>&1 &
load=$!
database=$work/mnt/database
sqlite3 "$database" 'PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, text);' >/dev/null
transactions() {
    { local -; set +x; } 2>/dev/null
    local n
    for ((n = 1; ; n++)); do
        [[ ! -e $work/stop ]] || break
        sqlite3 "$database" "PRAGMA synchronous=FULL; BEGIN; INSERT INTO t VALUES ($n, hex(randomblob(2000)));
            UPDATE t SET text = hex(randomblob(1000)) WHERE n = abs(random()) % $n; COMMIT;" || return 1
        echo "$n" >"$work/transactions"
    done
}
transactions &
database_user=$!
wait_for 60 test -s "$work/transactions"
# generic: the daemon's sockets of generic netlink, of which the kernel wants to keep one.
generic() {
    awk '$2 == 16 {print $NF}' "/proc/$pid/net/netlink" | while read -r inode; do
        find "/proc/$pid/fd" -lname "socket:\[$inode\]" -printf '%l\n'
    done | sort -u
}
connected_by=$(generic)
equal 'netlink sockets' "$(wc -l <<<"$connected_by")" 1
for ((round = 1; round <= rounds; round++)); do
    guardian=$(guardian_of "$pid")
    before=$(<"$work/transactions")
    expect 0 swiftnbd restart all
    contains "$out" "$D: restarted as version" "$E: restarted as version" 'after a pause of'
    echo "$out" >>"$work/pauses"
    equal process "$(pid_of vol)" "$pid"
    equal state "$(state_of vol)" attached
    # It is kept, and the program has one of its own besides.
    contains "$(generic)" "$connected_by"
    equal 'netlink sockets' "$(generic | wc -l)" 2
    wait_for 20 gone "$guardian"
    test -n "$(guardian_of "$pid")"
    # Both have gone on.
    more() { (($(<"$work/transactions") > before + 2)); }
    wait_for 60 more
    kill -0 "$load"
    sleep 2
done
sed -n 's/.*a pause of/the longest pause:/p' "$work/pauses" | sort -V | tail -n 1

: what cannot take its place
# asks PROGRAM: asks the daemon, on its control socket, to become PROGRAM.
asks() {
    printf '{"restart":{"program":"%s"}}\n' "$1" |
        timeout 200 socat -t 200 - "UNIX-CONNECT:/run/swiftnbd/${D#/dev/}.sock"
}
printf 'garbage' >"$work/garbage"
chmod +x "$work/garbage"
printf '#!/bin/sh\nexit 7\n' >"$work/dies"
chmod +x "$work/dies"
# It is tried with success, and then another volume's.
cat >"$work/turns" <<END_OF_PROGRAM
#!/bin/bash
case "\$*" in
*--state*) shift 2; exec $(printf '%q' "$TEST_SWIFTNBD") __resume nosuchvolume "\$@" ;;
*) exec $(printf '%q' "$TEST_SWIFTNBD") "\$@" ;;
esac
END_OF_PROGRAM
chmod +x "$work/turns"
: one that fails when it has the device hands it back, and what can be mended is waited for
cat >"$work/breaks" <<END_OF_PROGRAM
#!/bin/bash
case "\$*" in *--state*) sed -i '/^\[volumes.vol\]/a dirty = "1MiB"' $(printf '%q' "$config") ;; esac
exec $(printf '%q' "$TEST_SWIFTNBD") "\$@"
END_OF_PROGRAM
chmod +x "$work/breaks"
: in format 1 that much is enough
if ((format == 2)); then
    before=$(<"$work/transactions")
    cp "$config" "$work/right"
    asks "$work/breaks" >"$work/answer" &
    asking=$!
    waits() { (($(grep -c "$D waits: .*dirty = \"1MiB\" is too little" "$daemon_log") > 0)); }
    wait_for 60 waits
    grep "cannot go on with $D: .*dirty = \"1MiB\" is too little" "$daemon_log"
    cp "$work/right" "$config"
    wait $asking
    contains "$(<"$work/answer")" '"failed"' 'dirty = \"1MiB\" is too little'
    equal process "$(pid_of vol)" "$pid"
    wait_for 60 more
    kill -0 "$load"
fi

: nor does one that does not start take its place
for bad in "$work/missing" "$work/garbage" "$work/dies" "$work/turns"; do
    before=$(<"$work/transactions")
    expect 0 asks "$bad"
    contains "$out" '"failed"'
    case $bad in
        *missing) contains "$out" 'cannot start' 'No such file' ;;
        *garbage) contains "$out" 'cannot start' ;;
        *dies) contains "$out" 'does not start' 'exit status: 7' ;;
        *turns) contains "$out" nosuchvolume ;;
    esac
    equal process "$(pid_of vol)" "$pid"
    wait_for 60 more
    kill -0 "$load"
done

: nor one whose configuration is wrong
cp "$config" "$work/right"
echo 'nonsense = 1' >>"$config"
expect 2 swiftnbd restart vol
contains "$err" "$D was not restarted and works on" nonsense
cp "$work/right" "$config"
equal state "$(state_of vol)" attached

: while Swift is away, the old one goes on
lab stop proxy
patience=300 expect 6 swiftnbd restart vol
contains "$err" "$D was not restarted and works on"
lab restart proxy
before=$(<"$work/transactions")
wait_for 120 more

: all is there
touch "$work/stop"
wait_for 60 gone "$database_user"
wait "$database_user"
kill -0 "$load"
kill "$load"
wait "$load" || true
no grep 'verify: bad\|err= *[1-9]' "$work/fio"
equal 'integrity' "$(sqlite3 "$database" 'PRAGMA integrity_check')" ok
equal 'rows' "$(sqlite3 "$database" 'SELECT count(*) FROM t')" "$(<"$work/transactions")"
equal lock "$(lock_of vol)" "$locked"
umount "$work/mnt"
no_io_errors "$D" "$E"
expect 0 fsck.ext4 -fn "$D"
expect 0 swiftnbd detach "$D"
detached vol "$D" "$pid"
cmp -n 1048576 "$work/random" "$E"

: one that went on in another program fails like any other when it is killed
pid=$(pid_of other)
guardian=$(guardian_of "$pid")
kill -KILL "$pid"
wait_for 60 gone "$guardian"
wait_for 60 no connected "$E"
expect 1 swiftnbd detach "$E"
no_processes
