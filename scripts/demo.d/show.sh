# shellcheck shell=bash
# How scripts/demo and its guest show what they do. Source it.

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

# seconds MILLISECONDS: 65432 is "65.4 s".
seconds() { printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100)); }

# thousands NUMBER: 1234567 is "1,234,567".
thousands() { sed -E ':a; s/^([0-9]+)([0-9]{3})/\1,\2/; ta' <<<"$1"; }

# megabytes BYTES: 128000000 is "128 MB".
megabytes() { printf '%s MB' "$(thousands $((($1 + 500000) / 1000000)))"; }

# begin TEXT...: show what starts now; end: how long it took, on the same line.
begin() {
    begun_ms=$(now_ms) begun_text=$*
    printf '%-54s' "$begun_text"
}
end() { printf '%10s\n' "$(seconds $(($(now_ms) - begun_ms)))"; }

# progress TEXT: beside what has begun, where somebody watches.
progress() {
    [[ ! -t 1 ]] || printf '\r\e[K%-54s%s' "$begun_text" "${1:+    }${1:0:24}"
}

# count_files: of what list prints, how many files, and how many bytes in them.
count_files() {
    awk '$1 == "f" { files++; bytes += $3 } END { printf "%d %d\n", files, bytes }'
}
