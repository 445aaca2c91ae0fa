#!/usr/bin/env bash
# A machine with little memory writes far more than it has through a mounted file
# system, while Swift comes and goes: the kernel has to write dirty pages to get memory,
# and the daemon that it writes them to needs memory as well. It finishes, and all of it
# is there.
# needs: swift mem=256M timeout=900
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

megabytes=288
if [[ $full ]]; then megabytes=2048; fi
volumes swift vol
cat >>"$config" <<'END'
cache = "8MiB"
dirty = "16MiB"
map = "4MiB"
END
swiftnbd setup vol --size $((megabytes + 256))M
D=$(swiftnbd attach vol)
pid=$(pid_of vol)

: what it asked the kernel for
equal 'oom_score_adj' "$(<"/proc/$pid/oom_score_adj")" -1000
(($(awk '/^VmLck:/ {print $2}' "/proc/$pid/status") > 1024)) || fail 'its memory is not locked'
no grep -q 'cannot be marked' "$daemon_log"

mkfs.ext4 -q "$D"
mkdir "$work/mnt"
mount "$D" "$work/mnt"

# The content of file N: a megabyte that is not like the others, and can be made again.
content() { (yes "file $1 of $megabytes" || true) | head -c 1M; }
write() {
    { local -; set +x; } 2>/dev/null
    local number
    for ((number = 0; number < megabytes; number++)); do
        content $number >"$work/mnt/$number" || return 1
    done
    sync -f "$work/mnt"
}
write &
writer=$!

: Swift stands still for a while, again and again
pauses=0
while kill -0 $writer 2>/dev/null; do
    lab freeze proxy
    sleep 2
    lab thaw proxy
    sleep 3
    pauses=$((pauses + 1))
done
wait $writer
((pauses >= 2)) || fail "Swift stood still $pauses times only"
grep -E '^(MemTotal|MemFree|Dirty|Writeback):' /proc/meminfo
equal 'the daemon' "$(pid_of vol)" "$pid"
equal 'state' "$(state_of vol)" attached
no_io_errors "$D"

: all of it is there
echo 3 >/proc/sys/vm/drop_caches
{ set +x; } 2>/dev/null
for ((number = 0; number < megabytes; number += 1 + megabytes / 64)); do
    cmp <(content $number) "$work/mnt/$number" || fail "file $number is not what was written"
done
set -x
umount "$work/mnt"
swiftnbd detach "$D"
no_processes
