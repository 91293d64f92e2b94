"""What workers do in the tests of the pool; a worker must be able to import it."""

import os
import signal
import time


def behave(item: tuple[str, int]) -> tuple[str, int, int]:
    what, number = item
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(7)
    if what == "hang":
        time.sleep(60)
    return what, number, os.getpid()


def greedy(item: int) -> str:
    try:
        return str(len(bytearray(4 * 2**30)))
    except MemoryError:
        return "MemoryError"
