#!/usr/bin/env bash
# attach that fails after its daemon was started: the reason and its status reach
# the terminal, and nothing is left behind: no process, no device, no lock.
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes swift vol missing plain damaged
swiftnbd setup vol --size 64M
swiftnbd setup damaged --size 64M --format 1
http PUT plain
D=$(free_device)

# fails STATUS VOLUME TEXT...: attaching it does, in this way, with a device and
# without.
fails() {
    local status=$1 volume=$2 device
    shift 2
    for device in '' "$D"; do
        # Each attempt takes a while to give up.
        ((status != 6)) || [[ $device ]] || continue
        expect "$status" swiftnbd attach "$volume" ${device:+"$device"}
        contains "$err" "$volume" "$@"
        equal 'output' "$out" ''
        wait_for 30 no_processes
        no connected "$D"
        expect 0 swiftnbd status
        contains "$out" 'nothing is attached'
    done
}

: the container
fails 4 missing container hint: 'swiftnbd setup missing'
expect 22 http HEAD missing
fails 4 plain 'not a swiftnbd volume' hint:
equal 'client of plain' "$(metadata plain Client)" ''
http POST damaged -H 'X-Container-Meta-Swiftnbd-Objects: many'
fails 1 damaged Swiftnbd-Objects many hint: --force
equal 'client of damaged' "$(metadata damaged Client)" ''

: the password
swift_key=wrong volumes swift vol
fails 5 vol hint: password
no grep -q wrong "$work/err" "$daemon_log"
volumes swift vol
equal 'lock' "$(lock_of vol)" unlocked

: the network
SWIFTNBD_LAB_PORT=1 auth_url=http://$SWIFTNBD_HOST_IP:1/auth/v1.0 volumes swift vol
fails 6 vol hint:
volumes swift vol
lab stop proxy
fails 6 vol hint:
lab restart proxy
equal 'lock' "$(lock_of vol)" unlocked

: a configuration that others can read
chmod 644 "$config"
expect 2 swiftnbd attach vol
contains "$err" "$config"
chmod 600 "$config"

: it works after all that
D=$(swiftnbd attach vol)
expect 0 dd if=/dev/urandom of="$D" oflag=direct bs=1M count=1 conv=fsync
swiftnbd detach "$D"
no_processes
