"""Ray Core as a cluster. The one file that knows Ray; it is imported only if ``--executor ray`` is chosen."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtlbench.bench.executors.local import Part, free_port
from mtlbench.bench.executors.node import Job, serve
from mtlbench.bench.executors.parcels import Files, Parcel
from mtlbench.errors import ExitCode, MtlbenchError, shortened
from mtlbench.suite.schema import COUNT, PERIOD, Range, ranged

_GIB = 1 << 30
_ASK_S = 1.0
"""Seconds between a task's checks of whether it should leave."""
_ROOM_S = 5.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class RayOptions:
    """Options of the Ray executor.

    Attributes:
        address: The cluster: ``auto`` for the one that this machine belongs to, ``local`` to start one here.
        shared: Whether every node sees the results folder under the same path. If not, results travel.
        nodes: Nodes that the ranks of a run are spread over; more than one needs a shared folder.
        cpus: CPU cores and threads per rank.
        gpus: GPUs per rank, 0 or 1.
        memory: GiB of memory that Ray reserves for a run on a node; 0 for none.
        every: Seconds between reports of a run whose node does not see the results folder.
    """

    address: str = "auto"
    shared: bool = True
    nodes: int = ranged(1, COUNT)
    cpus: int = ranged(1, COUNT)
    gpus: int = ranged(0, Range(0, 1))
    memory: float = ranged(0.0, PERIOD)
    every: int = ranged(10, COUNT)

    def need(self, devices: int) -> dict[str, float]:
        """Returns how much of each Ray resource one run needs on a node.

        Args:
            devices: Ranks on it.
        """
        need = {"CPU": self.cpus * devices, "GPU": self.gpus * devices, "memory": int(self.memory * _GIB)}
        return {name: amount for name, amount in need.items() if amount}


@dataclass
class _Ticket:
    """A run that was submitted: a task per node.

    Attributes:
        tasks: Generators of references to the tasks' parcels.
        group: What reserves several nodes, or None.
        codes: Exit codes of the tasks that have ended, by node.
    """

    tasks: list[Any]
    group: Any = None
    codes: dict[int, int] = field(default_factory=dict)


class RayCluster:
    """Tasks on a Ray cluster, as `mtlbench.bench.executors.remote.Cluster` describes them.

    Args:
        options: Which cluster.
        devices: Ranks per node and run.

    Raises:
        MtlbenchError: If Ray is not installed or there is no cluster.
    """

    def __init__(self, options: RayOptions, devices: int = 1):
        self.ray = ray = _connected(options.address)
        self.need, self.nodes = options.need(devices), options.nodes
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.bell = ray.remote(_Bell).options(num_cpus=0, scheduling_strategy=here).remote()
        # Ray would end a worker after each task with a GPU. Only the forked run touches it, so the worker may stay, and
        # with it the server that has imported everything. A lost task is repeated by the bench, which counts losses.
        self._task = ray.remote(
            num_cpus=self.need["CPU"],
            num_gpus=self.need.get("GPU", 0),
            memory=self.need.get("memory"),
            max_retries=0,
            max_calls=0,
            num_returns="streaming",
        )(_task)
        self._room, self._looked = 0, -_ROOM_S

    def room(self) -> int:
        """Returns how many runs fit on the nodes of the cluster; at least 1, because a cluster may scale up."""
        if time.monotonic() - self._looked >= _ROOM_S:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            fitting = [int(min(node.get(name, 0) / n for name, n in self.need.items())) for node in nodes]
            self._room = spread(fitting, self.nodes)
            self._looked = time.monotonic()
        return max(1, self._room)

    def keep(self, files: Files) -> Any:
        """Returns a reference to files in Ray's object store."""
        return self.ray.put(files)

    def submit(self, job: Job, files: Files, sources: dict[str, Any]) -> _Ticket:
        """Starts a run: one task, or one on each of several nodes."""
        job = replace(job, nodes=self.nodes)
        arguments = (self.bell, job, files, list(sources), *sources.values())
        if self.nodes == 1:
            return _Ticket([self._task.remote(None, *arguments)])
        group = self.ray.util.placement_group([self.need] * self.nodes, strategy="STRICT_SPREAD")
        meeting, place = uuid.uuid4().hex, self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        tasks = [
            self._task.options(scheduling_strategy=place(group, index)).remote((meeting, index), *arguments)
            for index in range(self.nodes)
        ]
        return _Ticket(tasks, group)

    def arrived(self, ticket: _Ticket) -> tuple[list[Parcel], int | None]:
        """Returns the parcels that have arrived, and the exit code of a run that has ended or lost a node."""
        found: list[Parcel] = []
        for index, task in enumerate(ticket.tasks):
            if index in ticket.codes:
                continue
            parcels, code = self._arrived(task)
            found += [replace(parcel, code=None) for parcel in parcels]
            own = next((parcel.code for parcel in parcels if parcel.code is not None), None)
            ended = code if own is None else own
            if ended is None:
                continue
            ticket.codes[index] = ended
            if own not in (ExitCode.DONE, ExitCode.STOPPED) or len(ticket.codes) == len(ticket.tasks):
                self.cancel(ticket)  # Ranks elsewhere would wait for those of this node indefinitely.
                return found, max(ticket.codes.values()) if own in (ExitCode.DONE, ExitCode.STOPPED) else ended
        return found, None

    def _arrived(self, task: Any) -> tuple[list[Parcel], int | None]:
        ray, parcels = self.ray, []
        try:
            while ray.wait([task], timeout=0)[0]:
                parcels.append(ray.get(next(task)))
        except StopIteration:
            return parcels, None if parcels and parcels[-1].code is not None else ExitCode.STOPPED
        except ray.exceptions.RayTaskError as error:  # The code around the run is at fault, not the run.
            return [*parcels, Parcel(log=f"{error}\n".encode())], ExitCode.FAILED
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            return parcels, -signal.SIGKILL
        except ray.exceptions.RayError as error:  # The node is lost, which says nothing about the run.
            print(f"Ray lost a task, and its run starts again: {shortened(str(error))}", flush=True)
            return parcels, ExitCode.STOPPED
        return parcels, None

    def cancel(self, ticket: _Ticket) -> None:
        """Ends the workers of a run's tasks that have not ended, and gives its nodes back."""
        for index, task in enumerate(ticket.tasks):
            if index not in ticket.codes:
                self.ray.cancel(task, force=True)
        if ticket.group is not None:
            self.ray.util.remove_placement_group(ticket.group)

    def ring(self) -> None:
        """Lets every task know that it should leave."""
        self.bell.ring.remote()


class _Bell:
    """An actor beside the bench, which ends with it: tasks ask whether they should leave, and where they meet."""

    def __init__(self) -> None:
        self.rung = False
        self.places: dict[str, tuple[str, int]] = {}

    def ring(self) -> None:
        self.rung = True

    def heard(self) -> bool:
        return self.rung

    def host(self, meeting: str, address: str, port: int) -> None:
        self.places[meeting] = address, port

    def place(self, meeting: str) -> tuple[str, int] | None:
        return self.places.get(meeting)


def spread(fitting: Sequence[int], nodes: int) -> int:
    """Returns how many runs fit at once if each of them takes several nodes.

    Args:
        fitting: For every node, how many parts of a run fit on it; parts of one run never share a node.
        nodes: Parts per run.

    Example:
        >>> spread([2, 1, 1], nodes=2), spread([3, 1], nodes=1), spread([4], nodes=2)
        (2, 4, 0)
    """
    runs = 0
    while sum(min(count, runs + 1) for count in fitting) >= nodes * (runs + 1):
        runs += 1
    return runs


def _connected(address: str) -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MtlbenchError(
            f'--executor ray needs Ray. Importing it failed: {error}. Install it: pip install "mtlbench[ray]"'
        ) from error
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MtlbenchError(
            f"--executor ray needs a running cluster. Found none at {address!r}: {shortened(str(error))}. Start one "
            "with: ray start --head, or give its address with --option address=."
        ) from error
    return ray


def _task(
    seat: tuple[str, int] | None, bell: Any, job: Job, files: Files, names: list[str], *sources: Files
) -> Iterator[Parcel]:
    """Body of a task: trains one run on this node, or one part of it; ``seat`` holds the meeting and the part."""
    import ray

    accelerators = [str(each) for each in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    if not accelerators:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A forked run would import the main module of this process, which is Ray's.
    vars(sys.modules["__main__"]).pop("__file__", None)
    by_name: Mapping[str, Files] = dict(zip(names, sources, strict=True))
    part = Part(seat[1], job.nodes, *_meet(ray, bell, *seat)) if seat else None
    yield from serve(job, files, by_name, accelerators, _Asking(ray, bell), part)


def _meet(ray: Any, bell: Any, meeting: str, index: int) -> tuple[str, int]:
    """Returns address and port of rank zero, which its node chooses and the others wait for."""
    if index == 0:
        address = ray.util.get_node_ip_address()
        place = address, free_port(address)
        ray.get(bell.host.remote(meeting, *place))
        return place
    while (found := ray.get(bell.place.remote(meeting))) is None:
        time.sleep(_LOOK_S)
    return found


class _Asking:
    """Asks the bell now and then; if the bell is gone, so is the bench."""

    def __init__(self, ray: Any, bell: Any):
        self.ray, self.bell, self.asked = ray, bell, time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self.asked < _ASK_S:
            return False
        self.asked = time.monotonic()
        try:
            return bool(self.ray.get(self.bell.heard.remote(), timeout=30))
        except self.ray.exceptions.GetTimeoutError:
            return False
        except self.ray.exceptions.RayError:
            return True
