#!/usr/bin/env bash
# fio writes blocks of 512 bytes to 256 KiB at queue depth 32 to the raw device,
# with flushes and trims between them, and finds them again, also after the
# volume was attached anew.
# cases: format1 format2
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

megabytes=32
if [[ $full ]]; then megabytes=512; fi
eighth=$((megabytes / 8))M
volumes swift vol
swiftnbd setup vol --size ${megabytes}M --format "${TEST_CASE#format}" --block-size 512
D=$(swiftnbd attach vol)

cat >"$work/job" <<END
[global]
filename=$D
direct=1
ioengine=libaio
iodepth=32
rw=randwrite
verify=crc32c
verify_fatal=1
randrepeat=1
[mixed]
bsrange=512-256k
offset=0
size=$((megabytes / 2))M
fsync=64
[small]
bssplit=512/30:1k/20:4k/30:20k/20
blockalign=512
offset=$((megabytes * 7 / 8))M
size=$eighth
fsync=512
END
fio "$work/job"
# What is trimmed is written again before it counts.
common=(--filename="$D" --direct=1 --ioengine=libaio --iodepth=32 --size="$eighth"
    --verify=crc32c --verify_fatal=1 --fsync=64)
fio --name=trims "${common[@]}" --rw=randtrimwrite --bs=64k --offset=$((megabytes * 5 / 8))M
fio --name=reads "${common[@]}" --rw=randrw --bsrange=512-256k --offset=$((megabytes * 6 / 8))M
before=$(sum "$D")
no_io_errors "$D"
swiftnbd detach "$D"

D=$(swiftnbd attach vol "$D")
equal content "$(sum "$D")" "$before"
fio --verify_only "$work/job"
no_io_errors "$D"
swiftnbd detach vol
no_processes
