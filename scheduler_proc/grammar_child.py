"""A process that tries grammars out: `python -m scheduler_proc.grammar_child`, with a stream socket as its standard input.

It may hang, eat memory or crash on a hostile grammar; that is what it is for. Its parent (grammar_compiler.py) kills it then. The kernel
limits its memory and its CPU time as well, and ends it with its parent.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import socket
import struct
import sys
import time

import msgspec

from ipc.grammar import Grammar
from scheduler_proc.grammar_facts import TokenizerFacts
from scheduler_proc.grammar_text import load_tokenizer, prove, tidy, translate

LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_NICENESS = 5
_MIB = 2**20
_PAGE = resource.getpagesize()


class ChildTask(msgspec.Struct, frozen=True):
    """The first message: what to load, and the limits of each grammar in seconds and MiB beyond what loading took."""

    tokenizer: TokenizerFacts
    seconds: float
    memory: int


class Verdict(msgspec.Struct, frozen=True):
    """The answer to every message. text: the grammar as llguidance has it; error: why there is none."""

    text: str = ""
    error: str = ""


def send(connection: socket.socket, message: object) -> None:
    """One message with its length before it. Raises OSError."""
    data = msgspec.msgpack.encode(message)
    connection.sendall(LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes:
    """One message's bytes. Raises EOFError when the peer is gone, OSError (TimeoutError) as the socket does."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def main() -> int:
    """Answer until the parent is gone; returns the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=os.dup(0))
    task = msgspec.msgpack.decode(receive(connection), type=ChildTask)
    try:
        tokenizer = load_tokenizer(task.tokenizer)
    except Exception as error:
        send(connection, Verdict(error=tidy(str(error)) or type(error).__name__))
        return 1
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + task.memory * _MIB,) * 2)
    send(connection, Verdict())
    decoder = msgspec.msgpack.Decoder(Grammar)
    while True:
        try:
            data = receive(connection)
        except EOFError:
            return 0
        # A hang ends even if the parent has no time to see it.
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + task.seconds) + 1, resource.RLIM_INFINITY))
        try:
            text = translate(decoder.decode(data), tokenizer)
            prove(tokenizer, text)
            verdict = Verdict(text=text)
        except MemoryError:
            return 1
        except Exception as error:
            verdict = Verdict(error=tidy(str(error)) or "it cannot be used")
        send(connection, verdict)


if __name__ == "__main__":
    sys.exit(main())
