"""Workers on other machines, via Ray. Ray is imported only here, and only if `--ray` is given.

Each worker is a Ray actor. With `local:N`, there are N actors on this machine; otherwise, there is
one actor per machine in the cluster. The parameters are put into the object store once per step,
and each machine fetches them once. A block is passed as the argument of a remote call, which
returns the answer. An actor keeps the model in memory, but no state that the run depends on.

A new actor is checked in a separate thread so that training does not have to wait. The actor must
have the same packages, kernels and CPU as this machine. It opens the base model at the same path,
finds the model by its sha256, or receives a copy in chunks.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nbllama.errors import NbllamaError, UsageError
from nbllama.train.blocks.actor import Actor
from nbllama.train.blocks.address import Address
from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.pool import Event
from nbllama.train.blocks.worker import Plan, misfit, other_cpu

PIECE = 32 << 20  # number of bytes of the base model per message
JOIN_SECONDS = 300.0  # time limit for the first worker


@dataclass
class _Member:
    """An actor: `name` is the worker's name, and `node` is Ray's id for the worker's machine."""

    name: str
    node: str
    handle: Any
    ready: bool = False
    gone: bool = False


class RayPool:
    """The `Pool` of a Ray cluster."""

    def __init__(
        self, address: Address, plan: Plan, *, model_dir: str = "", mixed_cpu: bool = False
    ) -> None:
        """Connect to the cluster, and wait for the first worker.

        Raises `UsageError` if the cluster cannot be used, and `NbllamaError` if no worker is
        suitable.
        """
        self.address, self.plan, self.mixed_cpu = address, plan, mixed_cpu
        self.model_dir = model_dir
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        self._refused: set[str] = set()  # Ray's ids of machines that must not be used
        self.others: set[str] = set()
        self._lines: list[str] = []
        self._calls: dict[Any, str] = {}  # the worker that is computing each pending result
        self._params: Any = None
        self._number = 0
        self._plan_ref: Any = None
        _connect(address)
        self._here = ray.get_runtime_context().get_node_id()
        try:
            self._plan_ref = ray.put(plan)
            self._wait_for_first()
        except BaseException:
            self.close()
            raise

    def _wait_for_first(self) -> None:
        self._start_missing()
        self.wait_for_joining()
        if not self.workers():
            with self._lock:
                raise NbllamaError("; ".join(self._lines) or "the cluster has no machines")

    def wait_for_joining(self, seconds: float = JOIN_SECONDS) -> None:
        """Wait until every started worker is either ready or rejected.

        Raises `NbllamaError` if no worker is ready in time.
        """
        end = time.monotonic() + seconds
        while any(not m.ready and not m.gone for m in self._all()):
            if time.monotonic() > end:
                if self.workers():
                    return
                raise NbllamaError(f"no worker was ready after {seconds:g} s")
            time.sleep(0.05)

    def node_of(self, worker: str) -> str:
        """Return Ray's node id for a worker's machine."""
        return self._members[worker].node

    def _all(self) -> list[_Member]:
        with self._lock:
            return list(self._members.values())

    def _start_missing(self) -> None:
        """Start an actor on each machine without one, or the missing actors of `local:N`."""
        alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        running = [m.node for m in self._all() if not m.gone]
        wanted: list[str] = []
        if self.address.local:
            wanted = [self._here] * (self.address.local - len(running))
        else:
            wanted = [node for node in alive if node not in running]
        for node in wanted:
            if node in self._refused:
                continue
            self._number += 1
            host = str(alive.get(node, {}).get("NodeManagerHostname", "local"))
            name = f"{self._number}@{host}"
            threads = self.plan.threads
            env = {"OMP_NUM_THREADS": str(threads)} if threads else {}
            actor = ray.remote(Actor)
            handle = actor.options(
                num_cpus=0,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": env} if env else None,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(threads)
            member = _Member(name, node, handle)
            with self._lock:
                self._members[name] = member
            threading.Thread(target=self._join, args=(member,), daemon=True).start()

    def _join(self, member: _Member) -> None:
        """Check a new worker and open its model, in a separate thread."""
        handle, plan = member.handle, self.plan
        try:
            theirs = ray.get(handle.facts.remote())
            if problem := misfit(plan.facts, theirs, mixed_cpu=self.mixed_cpu):
                self._refuse(member, problem)
                return
            same = bool(self.address.local) or member.node == self._here
            if not ray.get(handle.open.remote(self._plan_ref, self.model_dir, same)):
                self._send_model(handle)
            with self._lock:
                member.ready = True
                self._lines.append(f"worker {member.name} joined (process {theirs['pid']})")
                if other_cpu(plan.facts, theirs):
                    self.others.add(member.name)
                    self._lines.append(
                        f"warning: worker {member.name} has a different CPU, so results may not be "
                        "bit-identical to those of a single machine"
                    )
        except ray.exceptions.RayActorError as e:
            self._leave(member, f"exited while joining: {_reason(e)}")
        except (ray.exceptions.RayError, OSError) as e:
            self._refuse(member, _reason(e))

    def _send_model(self, handle: Any) -> None:
        """Copy the base model to the worker's machine in chunks."""
        folder = self.model_dir or os.path.join("~", ".cache", "nbllama", "models")
        with open(self.plan.path, "rb") as file:
            while piece := file.read(PIECE):
                ray.get(handle.receive.remote(self._plan_ref, folder, ray.put(piece)))
        ray.get(handle.open_copy.remote(self._plan_ref))

    def _refuse(self, member: _Member, reason: str) -> None:
        self._refused.add(member.node)
        self._leave(member, f"cannot join: {reason}")

    def _leave(self, member: _Member, what: str) -> None:
        with self._lock:
            member.ready, member.gone = False, True
            self._lines.append(f"worker {member.name} {what}")
        ray.kill(member.handle)

    def begin(self, params: Mapping[str, np.ndarray] | None) -> Sequence[str]:
        """Put new parameters, if any, into the object store, and start actors on new machines."""
        self._start_missing()
        if params is not None:
            self._params = ray.put(dict(params))
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def workers(self) -> list[str]:
        """Return the names of the workers that are ready."""
        return [m.name for m in self._all() if m.ready and not m.gone]

    def start(self, worker: str, unit: Unit, attempt: int, point: float) -> None:
        """Send a unit to a worker."""
        handle = self._members[worker].handle
        self._calls[handle.compute.remote(unit, attempt, point, self._params)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Wait for answers and lost workers for at most `seconds`, and return them."""
        if not self._calls:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        return [self._event(ref) for ref in ready]

    def _event(self, ref: Any) -> Event:
        worker = self._calls.pop(ref)
        try:
            return Event(worker, ray.get(ref))
        except ray.exceptions.RayError as e:
            self.lose(worker)
            return Event(worker, None, _reason(e))

    def lose(self, worker: str) -> None:
        """End a worker and discard its unit; a new worker may be started on the same machine."""
        self._calls = {ref: name for ref, name in self._calls.items() if name != worker}
        member = self._members[worker]
        with self._lock:
            member.ready, member.gone = False, True
        ray.kill(member.handle)

    def ban(self, worker: str) -> None:
        """Never use this worker's machine again."""
        self._refused.add(self._members[worker].node)
        self.lose(worker)

    def close(self) -> None:
        """End the actors and leave the cluster."""
        for member in self._all():
            if not member.gone:
                ray.kill(member.handle)
        ray.shutdown()


def _connect(address: Address) -> None:
    quiet: dict[str, Any] = dict(
        include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address.local:
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15
            # without "local", Ray would join any cluster that is running on this machine
            ray.init(address="local", num_cpus=address.local, **quiet)
        else:
            quiet.pop("include_dashboard")
            ray.init(address=address.text, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as e:
        raise UsageError(f"--ray {address.text}: cannot connect: {_reason(e)}") from e
    except Exception as e:  # Ray raises a plain Exception if a node takes longer than 30 s
        raise NbllamaError(f"--ray {address.text}: Ray did not start: {_reason(e)}") from e
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would end the run without saving


def _reason(e: BaseException) -> str:
    """Return the first line of an error's message.

    If `e` has a cause, the cause's message is used; otherwise, the type of `e` precedes the line.
    """
    cause = getattr(e, "cause", None)
    text = str(cause if isinstance(cause, Exception) else e).strip()
    lines = text.splitlines() or [type(e).__name__]
    return lines[0] if isinstance(cause, Exception) else f"{type(e).__name__}: {lines[0]}"
