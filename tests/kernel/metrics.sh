#!/usr/bin/env bash
# What a daemon says of itself is what others saw: the kernel of its requests, Swift's
# proxy of those that it got. By Prometheus' format on a port and on a socket, by
# status --json, and by status --watch.
# cases: format1 format2
# full: format1
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes swift vol other
port=$((20000 + SRANDOM % 10000))
printf 'metrics = "127.0.0.1:%d"\n' $port >>"$config"
swiftnbd setup vol --size 64M --format "${TEST_CASE#format}"
swiftnbd setup other --size 16M --format "${TEST_CASE#format}"
proxy_log=$TEST_DIR/lab/log/proxy.log
# asked: what the proxy answered to swiftnbd about the volume, METHOD STATUS COUNT.
asked() {
    tail -n +$((begun + 1)) "$proxy_log" |
        awk '$10 ~ /^swiftnbd/ && $6 ~ "^/v1/[^/]*/other(/|%3F|$)" {n[$5 " " $8]++}
            END {for (key in n) print key, n[key]}' | sort
}
# Whatever the proxy says after this is of requests that came after this.
lab restart proxy
begun=$(wc -l <"$proxy_log")
# The section that was written last is that of `other`.
D=$(swiftnbd attach other)
index=${D#/dev/}

metrics() { curl "${curl[@]}" "http://127.0.0.1:$port/metrics"; }
# value NAME [LABELS]: of the line with these labels after those of every line.
value() {
    metrics | sed -n "s/^swiftnbd_$1{volume=\"other\",device=\"${D//\//\\/}\"${2:+,$2}} //p"
}
told() {
    metrics | sed -n 's/^swiftnbd_store_requests_total{.*method="\([A-Z]*\)",status="\([0-9]*\)"} /\1 \2 /p' | sort
}

: nobody else can read it, and no other address is taken
expect 22 curl "${curl[@]}" "http://127.0.0.1:$port/"
expect 22 curl "${curl[@]}" -X POST "http://127.0.0.1:$port/metrics"
contains "$(metrics)" '# TYPE swiftnbd_request_duration_seconds histogram' 'version="'
for wrong in 0.0.0.0:9464 127.0.0.1 127.0.0.1:0 '[::]:1' relative/path; do
    sed "s|^metrics = .*|metrics = \"$wrong\"|" "$config" >"$work/wrong.toml"
    expect 2 "$TEST_SWIFTNBD" --config "$work/wrong.toml" list
    contains "$err" wrong.toml metrics
done

: the kernel and the daemon count the same
dd if=/dev/urandom of="$D" bs=64K count=128 oflag=direct conv=fsync status=none
dd if="$D" of=/dev/null bs=64K count=64 iflag=direct status=none
blkdiscard -o 1M -l 1M "$D"
sync "$D"
# The fields of /sys/block/nbdN/stat: reads, merged, sectors, ticks, writes, …; discards
# from the 12th on, flushes from the 16th.
agree_with_kernel() (
    local stat
    read -ra stat <"/sys/block/$index/stat"
    equal reads "$(value request_duration_seconds_count 'operation="read"')" "${stat[0]}"
    equal 'bytes read' "$(value request_bytes_total 'operation="read"')" $((stat[2] * 512))
    # The kernel counts flushes among the writes.
    equal 'writes and flushes' "${stat[4]}" $(($(value request_duration_seconds_count 'operation="write"') +
        $(value request_duration_seconds_count 'operation="flush"')))
    equal 'bytes written' "$(value request_bytes_total 'operation="write"')" $((stat[6] * 512))
    equal trims "$(value request_duration_seconds_count 'operation="trim"')" "${stat[11]}"
    equal 'bytes trimmed' "$(value request_bytes_total 'operation="trim"')" $((stat[13] * 512))
)
# udev may read in between.
wait_for 30 agree_with_kernel
(($(value request_duration_seconds_count 'operation="write"') >= 128))
(($(value request_duration_seconds_count 'operation="flush"') >= 1))
equal failures "$(value request_failures_total 'operation="write"')" 0
equal 'last class' "$(value request_duration_seconds_bucket 'operation="write",le="+Inf"')" \
    "$(value request_duration_seconds_count 'operation="write"')"
equal dirty "$(value dirty_bytes)" 0

: so do the proxy and the daemon, and status with it
# Where one of the two has left, each says so: the daemon by 0, the proxy by 499. The other
# one may have seen an answer.
agree_with_proxy() (
    told >"$work/requests-told"
    asked >"$work/requests-asked"
    grep . "$work/requests-told" "$work/requests-asked"
    awk '
        {key = $1 " " $2; method[key] = $1}
        NR == FNR {told[key] = $3}
        NR != FNR {asked[key] = $3}
        END {
            for (key in method) {
                more = asked[key] - told[key]
                if (key !~ / (0|499)$/) {
                    if (more > 0) unheard[method[key]] += more
                    else unseen[method[key]] -= more
                }
            }
            for (key in unheard) if (unheard[key] > told[key " 0"]) {print "too many of " key; exit 1}
            for (key in unseen) if (unseen[key] > asked[key " 499"]) {print "too few of " key; exit 1}
            exit !NR
        }' "$work/requests-told" "$work/requests-asked"
)
wait_for 60 agree_with_proxy
asked
told
told | grep -q '^PUT 201 '
lab stop proxy
(echo lost >"$work/block" && dd if="$work/block" of="$D" bs=4K conv=sync,fsync oflag=direct status=none) &
writer=$!
unanswered() { (($(value store_requests_total 'method="PUT",status="0"') > 0)); }
wait_for 60 unanswered
(($(value dirty_bytes) > 0))
lab restart proxy
wait $writer
wait_for 60 agree_with_proxy
grep 'the store answers again after .* all was done in the end and nothing was lost' "$daemon_log"
same_in_status() (
    swiftnbd status other --json >"$work/json"
    jq -r '.[0].requests[] | "\(.method) \(.status) \(.count)"' "$work/json" | sort >"$work/told"
    equal status "$(<"$work/told")" "$(told)"
    equal writes "$(jq '.[0].traffic.write.classes | add' "$work/json")" \
        "$(value request_duration_seconds_count 'operation="write"')"
    equal lookups "$(jq '.[0] | .cache_hits + .cache_misses' "$work/json")" \
        $(($(value cache_hits_total) + $(value cache_misses_total)))
)
wait_for 60 same_in_status

: again and again, until nobody reads
patience=20 swiftnbd status --watch | head -n 6 >"$work/watched"
cat "$work/watched"
contains "$(head -n 1 "$work/watched")" DEVICE READ WRITE STORE DIRTY BEHIND LEASE FOUND
equal lines "$(grep -c "^$D  *other  *attached " "$work/watched")" 3
(while [[ ! -e $work/stop ]]; do
    dd if=/dev/urandom of="$D" bs=64K count=16 oflag=direct status=none
done) &
writer=$!
written() {
    patience=20 swiftnbd status other --watch --json | head -n 3 >"$work/lines"
    (($(tail -n 1 "$work/lines" | jq '.[0].traffic.write.bytes') >
        $(head -n 1 "$work/lines" | jq '.[0].traffic.write.bytes')))
}
wait_for 60 written
touch "$work/stop"
wait $writer

: a second volume cannot have the same address, but a socket of its own
sed -i "s|^\[volumes.vol\]|&\nmetrics = \"127.0.0.1:$port\"|" "$config"
expect 3 swiftnbd attach vol
contains "$err" "127.0.0.1:$port"
sed -i "/^\[volumes.vol\]/,/^\[volumes.other\]/s|^metrics = .*|metrics = \"$work/socket\"|" "$config"
grep -n metrics "$config"
E=$(swiftnbd attach vol)
curl "${curl[@]}" --unix-socket "$work/socket" http://localhost/metrics >"$work/page"
contains "$(<"$work/page")" "swiftnbd_size_bytes{volume=\"vol\",device=\"$E\"} 67108864"
equal mode "$(stat -c %a "$work/socket")" 600
expect 0 swiftnbd restart vol
curl "${curl[@]}" --unix-socket "$work/socket" http://localhost/metrics >"$work/page"
expect 0 swiftnbd detach vol
test ! -e "$work/socket"
expect 0 swiftnbd detach other
expect 7 curl "${curl[@]}" "http://127.0.0.1:$port/metrics"
no_processes
