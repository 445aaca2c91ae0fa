#!/usr/bin/env bash
# A new user with nothing but the README: the section "From an account to a file
# system", followed to the letter, ends with a file system on a volume in Swift.
# Only what the section says is an example is replaced, as its reader would.
# needs: swift
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

readme=$(dirname "$0")/../../README.md
section='## From an account to a file system'

# The machine has swiftnbd from nowhere else, and no configuration.
[[ ! -e /etc/swiftnbd ]]
unset -f swiftnbd
no command -v swiftnbd

# One fenced block after the other: blocks/01.sh, blocks/02.toml, …
mkdir "$work/blocks"
awk -v start="$section" -v out="$work/blocks" '
    $0 == start { inside = 1; next }
    inside && /^## / { exit }
    inside && /^```/ {
        if (file) { close(file); file = ""; next }
        kind = substr($0, 4)
        if (kind == "") { print "a block has no language" > "/dev/stderr"; exit 1 }
        file = sprintf("%s/%02d.%s", out, ++count, kind)
        next
    }
    file { print > file }
' "$readme"
(($(find "$work/blocks" -name '*.sh' | wc -l) >= 3)) || fail "the README has no such section"

# replace FILE EXAMPLE VALUE: what the reader writes in place of an example.
replace() {
    { local -; set +x; } 2>/dev/null
    local text
    text=$(<"$1")
    [[ $text == *"$2"* ]] || fail "the README's example '$2' is not there"
    printf '%s\n' "${text//"$2"/"$3"}" >"$1"
}

# Root needs no sudo. The build was made before; it would take minutes here.
mkdir "$work/bin"
cat >"$work/bin/sudo" <<'SUDO'
#!/bin/sh
exec "$@"
SUDO
cat >"$work/bin/cargo" <<'CARGO'
#!/bin/sh
[ "$*" = "build --release --locked" ] || { echo "cargo $*: not in the README" >&2; exit 1; }
CARGO
chmod +x "$work/bin/sudo" "$work/bin/cargo"
export PATH=$work/bin:/usr/local/sbin:/usr/local/bin:$PATH SWIFTNBD_BIN=$TEST_SWIFTNBD
cd "$(dirname "$0")/../.."

commands=0
for block in "$work"/blocks/*; do
    cat "$block"
    case $block in
        *.toml)
            replace "$block" https://swift.example/auth/v1.0 "$auth_url"
            replace "$block" account:user "$SWIFTNBD_LAB_USER"
            replace "$block" '"pass"' "\"$SWIFTNBD_LAB_KEY\""
            # Into the file that the README has the reader make.
            [[ -f /etc/swiftnbd/swiftnbd.toml ]] || fail "no step made the configuration's file"
            cat "$block" >/etc/swiftnbd/swiftnbd.toml
            ;;
        *.sh)
            # As one pastes it into a shell, each line after the other.
            timeout 200 bash -e -x "$block" </dev/null
            commands=$((commands + $(grep -c . "$block")))
            ;;
        *) fail "a block in a language that nobody runs: $block" ;;
    esac
done
((commands > 8))

# It is what the section promises: the file is there, in Swift, and nothing is
# left attached or locked.
(($(object_count mynbd0 seg/) > 0))
equal 'lock' "$(metadata mynbd0 client)" ''
no_processes
