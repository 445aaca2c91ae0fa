#!/usr/bin/env bash
# ext4, xfs and btrfs on three volumes attached at once: a real tree of files,
# blocks that fio verifies, and a file under fsx. After unmounting and attaching
# again all is the same, and the file systems are clean.
# cases: dir1 dir2 swift2
# full: dir2
# needs: mem=4096M
# swift2 needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

size=96M megabytes=40 operations=4000
if [[ $TEST_CASE == swift* ]]; then size=48M megabytes=12 operations=1500; fi
if [[ $full ]]; then size=512M megabytes=200 operations=40000; fi
format=${TEST_CASE: -1}
kinds=(ext4 xfs btrfs)
declare -A device=() daemon=()

# In format 1 the size of an object is one of the things that can differ.
setup=(--format "$format")
if ((format == 1)); then setup+=(--object-size 256K); fi
volumes "${TEST_CASE%[12]}" "${kinds[@]}"
swiftnbd setup ext4 --size "$size" "${setup[@]}"
if ((format == 1)); then setup=(--format 1 --object-size 1M); fi
swiftnbd setup xfs --size $((${size%M} + 300))M "${setup[@]}"
swiftnbd setup btrfs --size $((${size%M} + 160))M "${setup[@]}"
for kind in "${kinds[@]}"; do device[$kind]=$(swiftnbd attach "$kind"); done
equal 'devices' "$(printf '%s\n' "${device[@]}" | sort -u | wc -l)" 3
swiftnbd status

# mounts: all of them; unmounts: with not one error in the kernel's log.
mounts() {
    local kind
    for kind in "${kinds[@]}"; do mount "${device[$kind]}" "$work/$kind"; done
}
unmounts() {
    umount "${kinds[@]/#/$work/}"
    no_io_errors "${device[@]}"
}

# Files of this system, so many MB of them, links as well. Not the smallest: the guest's
# kernel holds a descriptor of the host's for each, and there is a limit.
(find /usr/share /usr/include /usr/lib -xdev \( -type f -size +3k -size -4M -o -type l \) -printf '%s %p\n' ||
    true) 2>/dev/null |
    awk -v most=$((megabytes << 20)) '{sum += $1; if (sum > most) exit; print substr($0, length($1) + 2)}' \
        >"$work/files"
wc -l "$work/files"
tar -C / -c --no-recursion -T "$work/files" 2>/dev/null >"$work/tree.tar"
(($(stat -c %s "$work/tree.tar") > megabytes * 9 << 16))

# Blocks past the page cache, with flushes, on each file system.
cat >"$work/job" <<END_OF_JOB
[global]
direct=1
ioengine=libaio
iodepth=16
rw=randwrite
bsrange=4k-128k
size=$((megabytes / 2))M
fsync=32
verify=crc32c
verify_fatal=1
verify_state_save=0
randrepeat=1
END_OF_JOB
for kind in "${kinds[@]}"; do
    printf '[%s]\nfilename=%s/%s/fio\n' "$kind" "$work" "$kind" >>"$work/job"
done

# Everything that fsx can do; it compares on each read.
cat >"$work/fsx.toml" <<'END_OF_FSX'
flen = 2097152
nomsyncafterwrite = true
[weights]
close_open = 1
truncate = 5
invalidate = 1
fsync = 1
fdatasync = 1
punch_hole = 5
posix_fallocate = 2
copy_file_range = 2
sendfile = 2
posix_fadvise = 2
END_OF_FSX

mkdir "${kinds[@]/#/$work/}"
for kind in "${kinds[@]}"; do "mkfs.$kind" -q "${device[$kind]}"; done
mounts
exercised=()
for kind in "${kinds[@]}"; do
    "$TEST_FSX" -q -f "$work/fsx.toml" -S "$TEST_SEED" -N $operations -P "$TEST_DIR" \
        "$work/$kind/fsx" &
    exercised+=($!)
done
for kind in "${kinds[@]}"; do tar -C "$work/$kind" -x -f "$work/tree.tar"; done
fio "$work/job"
for process in "${exercised[@]}"; do wait "$process"; done
(cd "$work" && sha256sum "${kinds[@]/%//fsx}") >"$work/sums"
unmounts

for kind in "${kinds[@]}"; do
    daemon[$kind]=$(pid_of "$kind")
    detach=$kind
    [[ $kind != ext4 ]] || detach=${device[$kind]}
    expect 0 swiftnbd detach "$detach"
done
for kind in "${kinds[@]}"; do detached "$kind" "${device[$kind]}" "${daemon[$kind]}"; done

# The other way round, so that they are on each other's devices.
for kind in btrfs xfs ext4; do device[$kind]=$(swiftnbd attach "$kind"); done
expect 0 fsck.ext4 -fn "${device[ext4]}"
expect 0 xfs_repair -n "${device[xfs]}"
expect 0 btrfs check --readonly --check-data-csum "${device[btrfs]}"
mounts
for kind in "${kinds[@]}"; do
    tar -C "$work/$kind" --compare -f "$work/tree.tar"
    equal "files on $kind" "$(find "$work/$kind" ! -type d ! -path '*/lost+found/*' \
        ! -path "$work/$kind/fio" ! -path "$work/$kind/fsx" | wc -l)" "$(wc -l <"$work/files")"
done
(cd "$work" && sha256sum --quiet -c sums)
fio --verify_only "$work/job"
unmounts
for kind in "${kinds[@]}"; do swiftnbd detach "${device[$kind]}"; done
no_processes
