"""Writes blocks that say what they are, reads them back, and says what was found.

usage: soak.py PATH BLOCKS LEDGER HOLDER STOP [trim|zero]

PATH is a block device, or a file of that many blocks of 4 KiB; with the last word
some of them are trimmed (where that makes zeros of any block) or zeroed. All that is to outlive
the process is in LEDGER, a line an event, before it matters:

  h HOLDER                   begins to hold PATH; the events before it bind it
  w HOLDER BLOCK VERSION     is about to write (version 0: zeros)
  s HOLDER BLOCK VERSION     has synced it
  r HOLDER BLOCK VERSION     has found it, where there was more than one possibility

A block is what was synced last, or what was begun after that; once a holder has found
one of these, it is that one. So a holder first reads all of it. Then it writes, syncs
and reads until STOP exists: status 0; until the device fails: 5; until something else
is read than was written: 1.
"""

import errno
import fcntl
import mmap
import os
import random
import struct
import sys
import time

SIZE = 4096
# From linux/fs.h: BLKDISCARD and BLKZEROOUT.
ZEROING = {"trim": 0x1277, "zero": 0x127F}
RUN = 16

path, blocks, ledger_path, holder, stop = sys.argv[1:6]
zeroing = ZEROING[sys.argv[6]] if len(sys.argv) > 6 else None
# Format 2: after any crash it is what it was at some moment.
in_order = sys.argv[6:7] == ["trim"]
blocks, holder = int(blocks), int(holder)
head = struct.Struct("<8sQQ")
buffer = mmap.mmap(-1, 64 * RUN * SIZE)
view = memoryview(buffer)


def content(block, version):
    """What the block holds; half of it does not compress."""
    if version == 0:
        return bytes(SIZE)
    start = head.pack(b"swiftnbd", block, version)
    noise = random.Random(version * blocks + block).randbytes(SIZE // 2)
    return start + noise + bytes(SIZE // 2 - len(start))


def fail(text):
    print(f"holder {holder}: {text}", flush=True)
    os._exit(1)


def say(kind, pairs):
    """Adds to the ledger, in one piece."""
    lines = "".join(f"{kind} {holder} {block} {version}\n" for block, version in pairs)
    os.write(ledger, lines.encode())


def begin():
    """What each block may be, from the ledger; the last is what was written last."""
    os.write(ledger, f"h {holder}\n".encode())
    may, last = {}, 0
    with open(ledger_path) as lines:
        for line in lines:
            kind, who, *numbers = line.split()
            if kind == "h":
                if int(who) == holder:
                    break
                last = int(who)
            # What somebody writes who has lost it is nowhere to be found.
            elif int(who) == last:
                block, version = map(int, numbers)
                if kind == "w":
                    may.setdefault(block, [0]).append(version)
                else:
                    may[block] = [version]
    return may, last


def is_over():
    """Somebody else holds it by now: what is read here is not the last word."""
    with open(ledger_path) as lines:
        return any(int(line.split()[1]) > holder for line in lines if line[0] == "h")


def check(block, found):
    """The block is one of those that it may be, and stays that."""
    versions = may.get(block, [0])
    for version in reversed(versions):
        if found == content(block, version):
            return version
    told = head.unpack_from(found)
    if is_over():
        raise OSError(errno.EIO, "somebody else has it, and has written it")
    fail(f"block {block} may be {versions} and is {told}; zeros: {not any(found)}")


def sweep():
    """Reads all of it, and settles what was open."""
    found, open_before = {}, {block: list(versions) for block, versions in may.items()}
    for first in range(0, blocks, 64 * RUN):
        count = min(64 * RUN, blocks - first)
        read(first, count)
        settled = []
        for at in range(count):
            block = first + at
            version = check(block, bytes(view[at * SIZE : (at + 1) * SIZE]))
            found[block] = version
            if len(may.get(block, [0])) > 1:
                may[block] = [version]
                settled.append((block, version))
        say("r", settled)
    if in_order:
        prefix(found, open_before)


def prefix(found, versions_of):
    """What the last holder has written is there up to some write, and nothing after it."""
    newest = max((found[block] for block in versions_of if found[block] >> 32 == before), default=0)
    for block, versions in versions_of.items():
        # Where zeros are among them, nobody can tell which.
        if len(versions) < 2 or 0 in versions[1:]:
            continue
        missing = [v for v in versions[versions.index(found[block]) + 1 :] if v < newest]
        if missing:
            fail(f"block {block} lacks {missing}, and {newest}, written later, is there")


def whole(transfer, first, count):
    """All of it, or what the device fails with."""
    done = 0
    while done < count * SIZE:
        now = transfer(fd, [view[done : count * SIZE]], first * SIZE + done)
        # It has no size any more once it is disconnected.
        if now == 0:
            raise OSError(errno.EIO, "nothing is there")
        done += now


def read(first, count):
    whole(os.preadv, first, count)


def work():
    """Writes, trims and reads, as chance has it."""
    first = random.randrange(blocks)
    count = min(random.choice((1, 1, 2, 4, RUN)), blocks - first)
    run = range(first, first + count)
    kind = random.random()
    if kind < 0.3:
        read(first, count)
        for at, block in enumerate(run):
            found = bytes(view[at * SIZE : (at + 1) * SIZE])
            # Whoever holds it reads what it has written last.
            last = may.get(block, [0])[-1]
            if check(block, found) != last:
                fail(f"block {block}: {last} was written, and an older one is read")
        return
    version = 0 if kind < 0.35 and zeroing else next_version()
    say("w", [(block, version) for block in run])
    for block in run:
        may.setdefault(block, [0]).append(version)
    if version == 0:
        fcntl.ioctl(fd, zeroing, struct.pack("QQ", first * SIZE, count * SIZE))
    else:
        for at, block in enumerate(run):
            view[at * SIZE : (at + 1) * SIZE] = content(block, version)
        whole(os.pwritev, first, count)
    unsynced.update(run)
    if random.random() < 0.4:
        sync()


def sync():
    os.fsync(fd)
    last = [(block, may[block][-1]) for block in sorted(unsynced)]
    say("s", last)
    for block, version in last:
        may[block] = [version]
    counts[0] += len(last)
    unsynced.clear()


def next_version():
    counts[1] += 1
    return (holder << 32) + counts[1]


def end(text, status):
    print(
        f"holder {holder}: {text} after {time.monotonic() - started:.0f} s, "
        f"{counts[0]} blocks synced in {counts[1]} writes, longest wait {longest:.1f} s",
        flush=True,
    )
    os._exit(status)


started, longest, counts, unsynced = time.monotonic(), 0.0, [0, 0], set()
random.seed(f"{os.environ['TEST_SEED']} {path} {holder}")
ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
may, before = begin()
try:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    sweep()
    while not os.path.exists(stop):
        begun = time.monotonic()
        work()
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.02)
    sync()
except OSError as error:
    if error.errno not in (errno.EIO, errno.ENOSPC, errno.EINVAL, errno.ENXIO):
        raise
    end(f"the device failed ({error.strerror})", 5)
end("stopped", 0)
