#!/usr/bin/env bash
# An encrypted volume as a device: the passphrase from a file named as the user's
# shell sees it, from a descriptor and from a credential of systemd's; a wrong one;
# another one. No plaintext in the store, no passphrase in a process or a log.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

volumes dir vol
cd "$work"
mkdir "$work/mnt" "$work/credentials"
umask 077
old=sesame-$SRANDOM$SRANDOM new=lentil-$SRANDOM$SRANDOM marker=plaintext-$SRANDOM$SRANDOM
{ set +x; } 2>/dev/null # the log below is searched for these
printf '%s\n' "$old" >old
printf '%s\n' "$new" >new
printf '%s' "$old" >credentials/swiftnbd.vol
set -x

# not_in WHAT WORD FILE...: the word is in none of them, and they are there.
not_in() {
    { local -; set +x; } 2>/dev/null
    local what=$1 word=$2
    shift 2
    cat -- "$@" >/dev/null
    ! grep -raqF -- "$word" "$@" || fail "$what is where it must not be"
}

# unseen PID: nobody finds a passphrase in this process's arguments or environment,
# or in the log.
unseen() {
    { local -; set +x; } 2>/dev/null
    local word
    for word in "$old" "$new"; do
        not_in 'a passphrase' "$word" "/proc/$1/cmdline" "/proc/$1/environ" "$daemon_log"
    done
}

# the_file DEVICE: what was written is on it.
the_file() {
    mount "$1" "$work/mnt"
    cmp "$work/file" "$work/mnt/file"
    umount "$work/mnt"
    no_io_errors "$1"
}

: a relative name, from another directory than the daemon\'s
swiftnbd setup vol --size 64M --encrypt --compression none --passphrase-file old
D=$(swiftnbd attach vol --passphrase-file old)
unseen "$(pid_of vol)"
mkfs.ext4 -q "$D"
mount "$D" "$work/mnt"
{ set +x; } 2>/dev/null
for ((line = 0; line < 50000; line++)); do echo "$line $marker"; done >file
set -x
cp file "$work/mnt/file"
umount "$work/mnt"
fsck.ext4 -fn "$D"
swiftnbd detach vol
grep -aqF -- "$marker" file
(($(find store -type f -path '*seg*' | wc -l) > 0))
find store -type f >objects
(($(xargs -d "\n" cat <objects | wc -c) > $(stat -c %s file)))
xargs -d '\n' grep -alF -- "$marker" <objects >found || true
equal 'objects with plaintext' "$(<found)" ''

: a wrong one, and none
expect 5 swiftnbd attach vol --passphrase-file new
contains "$err" vol 'passphrase is wrong' 'no data was changed'
expect 5 swiftnbd attach vol
contains "$err" vol 'there is no passphrase'
equal 'lock' "$(lock_of vol)" unlocked
no_processes

: a descriptor
D=$(swiftnbd attach vol --passphrase-fd 7 7<old)
unseen "$(pid_of vol)"
the_file "$D"
swiftnbd detach vol

: a credential, as LoadCredential= leaves it
D=$(CREDENTIALS_DIRECTORY=$work/credentials swiftnbd attach vol)
unseen "$(pid_of vol)"
the_file "$D"
swiftnbd detach vol

: another one
swiftnbd passphrase vol --passphrase-file old --new-passphrase-file new
expect 5 swiftnbd attach vol --passphrase-file old
contains "$err" 'passphrase is wrong'
D=$(swiftnbd attach vol --passphrase-file new)
unseen "$(pid_of vol)"
the_file "$D"
swiftnbd detach vol
no_processes
