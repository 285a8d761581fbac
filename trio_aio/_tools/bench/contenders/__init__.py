"""The contenders: each does a row's load as a user of its library would write it.

A contender is a function that gets a `Work`, opens what it needs, and sends its tasks through the phases. Each is written in the way
that is fastest for its library: no seek where a read continues the last one, no buffer of `io` in between, one hop to a thread instead
of two. Other libraries are imported when their turn comes, and one that is not installed is left out.

contender.py says what a contender is; ours.py has trio_aio, peers.py the libraries it is compared with, cursors.py the loads that files
with a cursor share; native.py and fio.py work without a library, and minimal.py is the yardstick for direct reads.
"""
