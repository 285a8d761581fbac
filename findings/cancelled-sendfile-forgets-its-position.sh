#!/bin/sh
# asyncio's sendfile does not move the file's position if it is cancelled, although it has sent a part.
#
# Guess: after `loop.sendfile` or `loop.sock_sendfile`, `file.tell()` tells how far it came, whatever ended it. The documentation promises that the
#   position is updated also if the method raises, so that `tell()` gives what was sent. A cancellation, which is what `asyncio.timeout` does, is
#   an exception like others.
# Seen: Python 3.8 to 3.13, selector event loop on Linux. When the peer closes the connection, the position is where the next byte would come
#   from. When the task is cancelled, it is where it was before the call (not even at the offset), and the peer has hundreds of KiB. So tell() cannot
#   distinguish "nothing was sent" from "some was". Where asyncio cannot call sendfile(2) and copies (here a BytesIO), the position is behind the
#   last block that was sent whole, and the peer has more.
# Why it matters: code that stops after a timeout and later resumes at `file.tell()` on the same connection sends the first part twice. A receiver
#   that counts bytes has the right number of wrong ones.
#
# Needs Python >= 3.8. No package of any registry. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/program.py" <<'PYTHON'
import asyncio
import io
import socket
import sys

OFFSET, COUNT = 1000, 4_000_000


async def send_and_stop(path, function, copies, ends_by):
    """Send COUNT bytes, of which the peer takes some, then stop. Return the error, the bytes that the peer got, and the file's position."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    peer.setblocking(False)
    with open(path, "rb", buffering=0) as on_disk:
        file = io.BytesIO(on_disk.read()) if copies else on_disk
        writer = None
        if function == "sendfile":
            _, writer = await asyncio.open_connection(sock=ours)
            call = loop.sendfile(writer.transport, file, OFFSET, COUNT)
        else:
            call = loop.sock_sendfile(ours, file, OFFSET, COUNT)
        task = asyncio.ensure_future(call)
        taken = 0
        for _ in range(5):
            await asyncio.sleep(0.02)
            taken += len(await loop.sock_recv(peer, 50_000))
        await asyncio.sleep(0.1)  # the socket is full again
        if ends_by == "cancellation":
            task.cancel()
        else:
            peer.close()
        try:
            await task
            error = "no error"
        except (asyncio.CancelledError, OSError) as caught:
            error = type(caught).__name__
        position = file.tell()
    writer.close() if writer else ours.close()
    if ends_by == "cancellation":
        await asyncio.sleep(0.1)  # closed
        while True:
            more = await loop.sock_recv(peer, 1 << 20)
            if not more:
                break
            taken += len(more)
        peer.close()
    return error, taken, position


def main(folder):
    path = folder + "/file"
    with open(path, "wb") as file:
        file.write(bytes(OFFSET + COUNT))
    print("Python", sys.version.split()[0])
    changed = False
    for function, copies, ends_by in (
        ("sock_sendfile", False, "peer"),
        ("sock_sendfile", False, "cancellation"),
        ("sendfile", False, "peer"),
        ("sendfile", False, "cancellation"),
        ("sock_sendfile", True, "cancellation"),
    ):
        error, got, position = asyncio.run(send_and_stop(path, function, copies, ends_by))
        print(f"{function} of {'a BytesIO' if copies else 'a file'}, {error}: the peer got {got} bytes, tell() is {position}")
        if ends_by == "peer":
            changed = changed or error != "BrokenPipeError" or not OFFSET + got <= position < OFFSET + COUNT
        elif copies:
            changed = changed or error != "CancelledError" or not OFFSET < position < OFFSET + got
        else:
            changed = changed or error != "CancelledError" or position != 0 or not 0 < got < COUNT
    return changed


sys.exit(main(sys.argv[1]))
PYTHON
"${PYTHON:-python3}" "$folder/program.py" "$folder"
