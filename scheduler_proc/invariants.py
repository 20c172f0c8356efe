"""What must hold between two calls of the scheduler; tests check it after every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scheduler_proc.policy import is_behind
from scheduler_proc.request import Status

if TYPE_CHECKING:
    from scheduler_proc.scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError naming the first broken invariant."""
    scheduler.rows.validate()
    scheduler.kv.validate()
    _places(scheduler)
    _blocks(scheduler)
    _prefixes(scheduler)
    _decodes(scheduler)
    _masks(scheduler)


def _places(scheduler: Scheduler) -> None:
    """Every live request is known to its frontend and stands in exactly one place."""
    running, waiting = list(scheduler.running()), list(scheduler.waiting)
    assert len(waiting) == len(scheduler.waiting), "the queue miscounts"
    for request in running:
        assert request.status is Status.RUNNING, f"{request.request_id} runs as {request.status}"
    held = list(scheduler.lifecycle.held)
    assert all(request.waiting_on for request in held) and not any(request.waiting_on for request in waiting), "held for nothing"
    waiting += held
    for request in waiting:
        assert request.status in (Status.WAITING, Status.PREEMPTED), f"{request.request_id} waits as {request.status}"
        assert request.row == -1 and request.node is None, f"{request.request_id} waits and holds something"
    known = [request for frontend in scheduler.frontends for request in frontend.requests.values()]
    assert len({id(request) for request in running + waiting}) == len(running) + len(waiting), "a request is in two places"
    assert {id(request) for request in known} == {id(request) for request in running + waiting}, "a request is lost"
    for frontend in scheduler.frontends:
        assert frontend.request_ids == {request.request_id for request in frontend.requests.values()}
        assert scheduler.frontends.by_number[frontend.number] is frontend
    unfinished = [request for request in running if scheduler.rows.num_scheduled[request.row] < request.target]
    listed = scheduler.lifecycle.prefilling
    assert {id(request) for request in listed} == {id(request) for request in unfinished}, "a wrong list of rows to compute"
    assert len({id(request) for request in listed}) == len(listed), "a row is to be computed twice"
    assert not any(request.waiting_on for request in listed), "a row is to be computed that waits"
    constrained = [request for request in running if request.constraint is not None]
    behind = sum(is_behind(request.priority) for request in scheduler.running())
    assert scheduler.lifecycle.num_behind == behind, f"{behind} rows no client waits for, {scheduler.lifecycle.num_behind} counted"
    assert listed == sorted(listed, key=lambda request: request.order), "prompts are not in the policy's order"
    assert scheduler.lifecycle.num_constrained == len(constrained) <= max(scheduler.dimensions.masks, 0), (
        "rows under a grammar are miscounted"
    )


def _blocks(scheduler: Scheduler) -> None:
    """Reference counts are exactly the entries of running requests' tables."""
    rows, pool = scheduler.rows, scheduler.kv.pool
    counts = np.zeros(pool.num_blocks, np.int32)
    for request in scheduler.running():
        table = rows.block_table[request.row, : rows.capacity[request.row] // scheduler.kv.block_size]
        assert len(set(table.tolist())) == len(table), f"{request.request_id} has a block twice"
        counts[table] += 1
    assert np.array_equal(counts, pool.refs), "reference counts are not the tables'"


def _prefixes(scheduler: Scheduler) -> None:
    """Blocks are shared only as the same prefix, and the path of each running request is pinned."""
    rows, kv = scheduler.rows, scheduler.kv
    pins: dict[int, int] = {}
    owners: dict[int, list[tuple[int, bytes]]] = {}
    for request in scheduler.running():
        row, node = request.row, request.node
        scheduled = int(rows.num_scheduled[row])
        assert request.path_len * kv.block_size <= scheduled, f"{request.request_id} shares what is not planned"
        if node is not None:
            pins[id(node)] = pins.get(id(node), 0) + 1
        for at in range(request.path_len - 1, -1, -1):
            assert node is not None and node.key == request.keys[at + 1], f"{request.request_id}: a wrong path"
            assert node.block == rows.block_table[row, at], f"{request.request_id}: path and table differ"
            node = node.parent
        assert node is None
        table = rows.block_table[row, : rows.capacity[row] // kv.block_size].tolist()
        for at, block in enumerate(table):
            prefix = request.cache_salt.encode() + b"\0" + rows.tokens(row)[: 4 * kv.block_size * (at + 1)].tobytes()
            owners.setdefault(block, []).append((at if at < request.path_len else -1, prefix))
    for block, users in owners.items():
        assert len(users) == 1 or (len(set(users)) == 1 and users[0][0] >= 0), f"block {block} is shared by different prefixes"
    for node in kv.cache.nodes():
        assert node.pins == pins.get(id(node), 0), "pins are not the running requests'"


def _decodes(scheduler: Scheduler) -> None:
    """The cached set of decoding rows, if it is current, is what the columns say; steps in flight cover what is scheduled."""
    rows = scheduler.rows
    if scheduler.planner.decodes.version == rows.version:
        assert set(scheduler.planner.decodes.rows.tolist()) == set(np.flatnonzero(rows.decoding).tolist())
        assert (rows.generation[scheduler.planner.decodes.rows] == scheduler.planner.decodes.generations).all()
    in_flight: dict[int, int] = {}
    for flight in scheduler.flights:
        for prefill in flight.prefills:
            if rows.generation[prefill.row] == prefill.generation:
                in_flight[prefill.row] = in_flight.get(prefill.row, 0) + prefill.count
        if flight.decodes is not None:
            for row, generation in zip(flight.decodes.rows.tolist(), flight.decodes.generations.tolist()):
                if rows.generation[row] == generation:
                    in_flight[row] = in_flight.get(row, 0) + 1
    for request in scheduler.running():
        row = request.row
        pending = int(rows.num_scheduled[row] - rows.num_computed[row])
        flying = in_flight.get(row, 0)
        assert pending == flying, f"row {row}: {pending} tokens scheduled and not computed, {flying} in flight"


def _masks(scheduler: Scheduler) -> None:
    """Steps await the masks that are not there, of rows that still sample in them, and no others."""
    coming: dict[int, list[bool]] = {}  # for each row under a grammar that samples in flight, step by step: is its mask awaited?
    for flight in scheduler.flights:
        fresh = [scheduler.rows.generation[each.row] == each.generation for each in flight.bound]
        for at, (each, is_fresh) in enumerate(zip(flight.bound, fresh)):
            if is_fresh:
                coming.setdefault(each.row, []).append(flight.awaited.get(each.constraint) == at)
        assert len(flight.awaited) <= sum(fresh), f"step {flight.step} awaits a mask in vain"
        assert flight.follow or not flight.awaited, f"the workers do not know that masks of step {flight.step} follow"
    for request in scheduler.running():
        if request.constraint is not None:
            first, *later = coming.get(request.row, [bool(request.waiting_on)])
            assert first == bool(request.waiting_on), f"{request.request_id}: its mask is there and awaited, or neither"
            assert all(later), f"{request.request_id}: a mask is there before the token it depends on"
