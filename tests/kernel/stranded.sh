#!/usr/bin/env bash
# detach while Swift is away: with --timeout it fails in time and the device goes
# on; with --force it says what is lost and ends.
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes swift vol
swiftnbd setup vol --size 64M
D=$(swiftnbd attach vol)
pid=$(pid_of vol)

write() { pattern "$1" 2M | dd of="$D" oflag=direct bs=16K seek="$2" iflag=fullblock status=none; }
holds() { cmp <(dd if="$D" iflag=direct bs=16K skip="$2" count=128 status=none) <(pattern "$1" 2M); }

write 1 0
sync "$D"

: --timeout
lab stop proxy
write 2 128
patience=60 expect 6 swiftnbd detach "$D" --timeout 5
contains "$err" "$D" 'not durable' hint:
equal 'state' "$(state_of vol)" attached
write 3 256
holds 2 128
lab restart proxy
timeout 120 sync "$D"
holds 1 0
holds 3 256
contains "$(lock_of vol)" "locked by $(hostname):$pid"
no_io_errors "$D"
expect 0 swiftnbd detach vol --timeout 120
detached vol "$D" "$pid"
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
holds 1 0
holds 2 128
holds 3 256

: detach waits for as long as it takes
lab stop proxy
write 4 0
swiftnbd detach "$D" >"$work/detach" 2>&1 &
detach=$!
opened() { (find /proc/[0-9]*/fd -lname "$D" 2>/dev/null || true) | grep -q .; }
wait_for 60 opened
lab restart proxy
wait $detach
detached vol "$D" "$pid"
D=$(swiftnbd attach vol)
pid=$(pid_of vol)
holds 4 0

: --force
write 5 0
sync "$D"
lab stop proxy
write 6 128
patience=60 expect 1 swiftnbd detach "$D" --force --timeout 5
contains "$err" lost
wait_for 60 gone "$pid"
no connected "$D"
lab restart proxy
contains "$(lock_of vol)" "locked by $(hostname):$pid"
D=$(swiftnbd attach vol)
holds 5 0
swiftnbd detach "$D"
no_processes
