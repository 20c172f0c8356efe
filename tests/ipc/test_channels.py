"""Typed channels over real sockets: order, refusal of everything malformed or stale, bounded queues, no lost wake-up."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
import zmq

from ipc import channels
from ipc.channels import Channel
from ipc.errors import ChannelFullError
from ipc.lane import MAX_BYTES
from ipc.messages import Abort, FrontendToScheduler, RefuseCode, Refused, SchedulerToFrontend, StepPlan, Tokens

Context = zmq.Context[zmq.Socket[bytes]]
OPEN: list[Channel[Any]] = []


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on its way by ZeroMQ is not given up because the machine is busy."""
    monkeypatch.setattr(channels, "LATE_SECONDS", 1000.0)


def run(scenario: Callable[[Context, str], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    context: Context = zmq.Context()

    async def bounded() -> None:
        try:
            await asyncio.wait_for(scenario(context, f"ipc://{tmp_path}/s"), 100)
        finally:
            while OPEN:
                OPEN.pop().close()

    try:
        uvloop.run(bounded())
    finally:
        context.destroy(linger=0)


def router(*args: Any, **kwargs: Any) -> Channel[Any]:
    OPEN.append(Channel.router(*args, **kwargs))
    return OPEN[-1]


def dealer(*args: Any, **kwargs: Any) -> Channel[Any]:
    OPEN.append(Channel.dealer(*args, **kwargs))
    return OPEN[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def pair(context: Context, address: str, loop: asyncio.AbstractEventLoop) -> tuple[Channel[Any], Channel[Any], list[Any], list[Any]]:
    server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=9)
    client: Channel[Any] = dealer(context, address, "frontend.0.3", SchedulerToFrontend, peer_epoch=9)
    at_server: list[Any] = []
    at_client: list[Any] = []
    server.attach(loop, lambda peer, message: at_server.append((peer, message)))
    client.attach(loop, lambda peer, message: at_client.append(message))
    return server, client, at_server, at_client


def test_order_in_both_directions(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        for number in range(3000):
            client.send(Abort([number]))
        await until(lambda: len(at_server) == 3000)
        assert at_server == [("frontend.0.3", Abort([number])) for number in range(3000)]
        for number in range(3000):
            assert server.send(Tokens(number, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 3000)
        assert [message.step for message in at_client] == list(range(3000))
        assert server.dropped == client.dropped == 0

    run(scenario, tmp_path)


def test_ping_pong_never_loses_a_wake_up(tmp_path: Path) -> None:
    """Replies sent from inside the handler swallow the descriptor's edge; the channel must look again."""

    async def scenario(context: Context, address: str) -> None:
        loop = asyncio.get_running_loop()
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=1)
        client: Channel[Any] = dealer(context, address, "frontend.0.2", SchedulerToFrontend, peer_epoch=1)
        done = asyncio.Event()

        def reply(peer: str, message: Abort) -> None:
            server.send(Refused(message.handles[0], RefuseCode.INVALID, ""), peer)

        def again(_peer: str, message: Refused) -> None:
            if message.handle == 3000:
                done.set()
            else:
                client.send(Abort([message.handle + 1]))

        server.attach(loop, reply)
        client.attach(loop, again)
        client.send(Abort([0]))
        await asyncio.wait_for(done.wait(), 60)

    run(scenario, tmp_path)


def test_unknown_peer_is_reported_not_lost_silently(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=1)
        assert server.send(StepPlan(1, 1), "worker.0.77") is False

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    "frames",
    [
        [b"junk"],
        [b"", b""],
        [b"\0" * 16],
        [struct.pack("<QQ", 3, 0), b"\xc1"],  # never valid msgpack
        [struct.pack("<QQ", 3, 0), b"\x91\x63"],  # unknown tag
        [struct.pack("<QQ", 3, 0), msgspec.msgpack.encode([2, ["x"]])],  # wrong type
        [struct.pack("<QQ", 3, 0), b"\x91" * 100_000],  # deep nesting
        [struct.pack("<QQ", 3, 0), b"\xdd\xff\xff\xff\xff"],  # claims 4 G items
        [struct.pack("<QQ", 4, 0), msgspec.msgpack.encode(Abort([1]))],  # another life's epoch
        [struct.pack("<QQ", 3, 0), msgspec.msgpack.encode(Abort([1])), b"more"],
        [b"cos\nsystem\n(S'true'\ntR."],  # a pickle
    ],
)
def test_bad_frames_are_counted_and_the_peer_lives_on(tmp_path: Path, frames: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LATE_SECONDS", 0.1)  # the numbers between 0 and 5 never come

    async def scenario(context: Context, address: str) -> None:
        seen: list[Any] = []
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=1)
        server.attach(asyncio.get_running_loop(), lambda peer, message: seen.append(message))
        raw = context.socket(zmq.DEALER)
        raw.setsockopt(zmq.IDENTITY, b"frontend.0.3")
        raw.connect(address)
        raw.send_multipart(frames)
        await until(lambda: server.dropped == 1)
        raw.send_multipart([struct.pack("<QQ", 3, 5), msgspec.msgpack.encode(Abort([8]))])
        await until(lambda: seen == [Abort([8])])
        raw.close(linger=0)

    run(scenario, tmp_path)


def test_stale_epochs_and_repeats_are_dropped(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        client.send(Abort([1]))
        await until(lambda: len(at_server) == 1)
        server._epoch = 8  # as the scheduler's previous life would speak
        server.send(Tokens(1, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: client.dropped == 1)
        server._epoch = 9
        server._sent["frontend.0.3"] = 0  # repeats number 0 and 1
        server.send(Tokens(2, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 1)
        server._sent["frontend.0.3"] = 0
        server.send(Tokens(3, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: client.dropped == 2)
        assert [message.step for message in at_client] == [2]

    run(scenario, tmp_path)


def without_lane(channel: Channel[Any]) -> None:
    """From now on this side sends by ZeroMQ alone."""
    assert channel._lane is not None
    channel._lane.send = lambda data, peer="": False  # type: ignore[method-assign]


def test_small_messages_take_the_short_way(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        for channel in (server, client):
            channel._send_frames = lambda frames: pytest.fail("sent by ZeroMQ")  # type: ignore[method-assign]
        client.send(Abort([1]))
        await until(lambda: at_server == [("frontend.0.3", Abort([1]))])
        assert server.send(Tokens(1, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 1)

    run(scenario, tmp_path)


@pytest.mark.parametrize("by_zeromq", [(0,), (1, 2), (0, 2, 4), (3, 4)])
def test_what_overtakes_on_the_other_way_waits(tmp_path: Path, by_zeromq: tuple[int, ...]) -> None:
    """Too large for a datagram goes by ZeroMQ; the small ones sent after it arrive before it and are delivered after it."""

    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        large = b"x" * 4 * MAX_BYTES
        client.send(Abort([0]))
        await until(lambda: len(at_server) == 1)
        for round_ in range(20):
            for number in range(5):
                server.send(Tokens(5 * round_ + number, 0, large if number in by_zeromq else b"", b"", b""), "frontend.0.3")
            await asyncio.sleep(0)
        await until(lambda: len(at_client) == 100)
        assert [message.step for message in at_client] == list(range(100))
        assert client.dropped == 0 and not client._early

    run(scenario, tmp_path)


def test_a_channel_without_a_lane_on_either_side(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        without_lane(client)
        for number in range(100):
            client.send(Abort([number]))
        await until(lambda: len(at_server) == 100)
        without_lane(server)
        for number in range(100):
            server.send(Tokens(number, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 100)
        assert [message.step for message in at_client] == list(range(100))

    run(scenario, tmp_path)


def test_a_directory_too_long_for_the_lane_leaves_zeromq(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = 107 - len("/s") - len(str(tmp_path)) - 1
    directory = tmp_path / ("d" * room)
    directory.mkdir()

    async def scenario(context: Context, _address: str) -> None:
        server, client, at_server, at_client = pair(context, f"ipc://{directory}/s", asyncio.get_running_loop())
        assert server._lane is None and client._lane is None
        client.send(Abort([1]))
        await until(lambda: len(at_server) == 1)
        server.send(Tokens(1, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 1)

    run(scenario, tmp_path)
    assert "by ZeroMQ alone" in caplog.text


def test_a_message_that_never_comes_holds_nothing_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LATE_SECONDS", 0.1)

    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        client.send(Abort([0]))
        await until(lambda: len(at_server) == 1)
        server._sent["frontend.0.3"] = 3
        for number in (3, 4):
            server.send(Tokens(number, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 2)
        assert client.dropped == 1 and [message.step for message in at_client] == [3, 4]
        server.send(Tokens(5, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 3)

    run(scenario, tmp_path)


def test_what_waits_for_a_message_before_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_QUEUED", 5)

    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, at_client = pair(context, address, asyncio.get_running_loop())
        client.send(Abort([0]))
        await until(lambda: len(at_server) == 1)
        server._sent["frontend.0.3"] = 1
        for number in range(1, 9):
            server.send(Tokens(number, 0, b"", b"", b""), "frontend.0.3")
            await asyncio.sleep(0.001)
        await until(lambda: client.dropped == 3)
        assert not at_client and len(client._early[""]) == 5
        server._sent["frontend.0.3"] = 0
        server.send(Tokens(0, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: len(at_client) == 6)
        assert [message.step for message in at_client] == list(range(6))

    run(scenario, tmp_path)


def test_a_dead_peer_leaves_no_file(tmp_path: Path) -> None:
    async def scenario(context: Context, address: str) -> None:
        server, client, at_server, _ = pair(context, address, asyncio.get_running_loop())
        client.send(Abort([0]))
        await until(lambda: len(at_server) == 1)
        assert sorted(os.listdir(tmp_path)) == ["frontend.0.3.s", "s", "s.lane"]
        server.forget("frontend.0.3")
        server.forget("../s")
        assert sorted(os.listdir(tmp_path)) == ["s", "s.lane"]

    run(scenario, tmp_path)
    assert os.listdir(tmp_path) in ([], ["s"])


def test_numbers_go_on_after_a_message_to_nobody(tmp_path: Path) -> None:
    """What is refused because the peer is not there yet leaves no gap that the first message would wait behind."""

    async def scenario(context: Context, address: str) -> None:
        loop = asyncio.get_running_loop()
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=9)
        seen: list[str] = []
        server.attach(loop, lambda peer, message: seen.append(peer))
        assert server.send(Tokens(1, 0, b"", b"", b""), "frontend.0.3") is False
        client: Channel[Any] = dealer(context, address, "frontend.0.3", SchedulerToFrontend, peer_epoch=9)
        got: list[int] = []
        client.attach(loop, lambda _peer, message: got.append(message.step))
        client.send(Abort([1]))
        await until(lambda: bool(seen))
        server.send(Tokens(2, 0, b"", b"", b""), "frontend.0.3")
        await until(lambda: bool(got))
        assert got == [2] and client.dropped == 0

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    "name, data",
    [
        ("frontend.0.3.s", b""),
        ("frontend.0.3.s", b"x" * 15),
        ("frontend.0.3.s", struct.pack("<QQ", 4, 0) + msgspec.msgpack.encode(Abort([1]))),  # another life's epoch
        ("frontend.0.3.s", struct.pack("<QQ", 3, 0) + b"\xc1"),  # never valid msgpack
        ("frontend.0.3.s", b"x" * (MAX_BYTES + 1)),
        ("frontend.0.3.w", struct.pack("<QQ", 3, 0) + msgspec.msgpack.encode(Abort([1]))),  # of another endpoint
        ("stranger", struct.pack("<QQ", 3, 0) + msgspec.msgpack.encode(Abort([1]))),
        ("", struct.pack("<QQ", 3, 0) + msgspec.msgpack.encode(Abort([1]))),  # unbound
    ],
)
def test_bad_datagrams_are_counted_and_the_peer_lives_on(tmp_path: Path, name: str, data: bytes) -> None:
    async def scenario(context: Context, address: str) -> None:
        seen: list[Any] = []
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=1)
        server.attach(asyncio.get_running_loop(), lambda peer, message: seen.append((peer, message)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
            if name:
                raw.bind(f"{tmp_path}/{name}")
            raw.sendto(data, f"{tmp_path}/s.lane")
            await until(lambda: server.dropped == 1)
        if os.path.exists(f"{tmp_path}/{name}") and name:
            os.unlink(f"{tmp_path}/{name}")
        client: Channel[Any] = dealer(context, address, "frontend.0.3", SchedulerToFrontend, peer_epoch=1)
        client._sent[""] = server._received.get("frontend.0.3", 0)
        client.send(Abort([8]))
        await until(lambda: seen == [("frontend.0.3", Abort([8]))])

    run(scenario, tmp_path)


def test_a_peer_that_does_not_read_is_an_error_and_nothing_is_lost_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "HIGH_WATER_MARK", 50)
    monkeypatch.setattr(channels, "MAX_QUEUED", 400)

    async def scenario(context: Context, address: str) -> None:
        loop = asyncio.get_running_loop()
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=9)
        arrived: list[Any] = []
        server.attach(loop, lambda peer, message: arrived.append(peer))
        client: Channel[Any] = dealer(context, address, "frontend.0.3", SchedulerToFrontend, peer_epoch=9)
        client.send(Abort([1]))
        await until(lambda: bool(arrived))
        sent = 0
        try:
            while True:
                server.send(Tokens(sent, 0, b"", b"", b""), "frontend.0.3")
                sent += 1
        except ChannelFullError:
            pass
        assert sent >= 400
        got: list[int] = []
        client.attach(loop, lambda _peer, message: got.append(message.step))
        await until(lambda: len(got) == sent)
        assert got == list(range(sent))

    run(scenario, tmp_path)


def test_a_peer_that_does_not_read_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "HIGH_WATER_MARK", 50)

    async def scenario(context: Context, address: str) -> None:
        loop = asyncio.get_running_loop()
        server: Channel[Any] = router(context, address, FrontendToScheduler, epoch=9)
        seen: set[str] = set()
        server.attach(loop, lambda peer, message: seen.add(peer))
        deaf: Channel[Any] = dealer(context, address, "frontend.0.3", SchedulerToFrontend, peer_epoch=9)
        listening: Channel[Any] = dealer(context, address, "frontend.1.4", SchedulerToFrontend, peer_epoch=9)
        got: list[int] = []
        listening.attach(loop, lambda _peer, message: got.append(message.step))
        deaf.send(Abort([1]))
        listening.send(Abort([1]))
        await until(lambda: len(seen) == 2)
        for number in range(2000):
            server.send(Tokens(number, 0, b"", b"", b""), "frontend.0.3")
        server.send(Tokens(7, 0, b"", b"", b""), "frontend.1.4")
        await until(lambda: got == [7])
        server.forget("frontend.0.3")

    run(scenario, tmp_path)
