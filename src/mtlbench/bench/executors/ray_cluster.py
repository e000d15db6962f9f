"""Ray Core as a cluster. The one file that knows Ray; it is imported only if ``--executor ray`` is chosen."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.bench.executors.node import Job, serve
from mtlbench.bench.executors.parcels import Files, Parcel
from mtlbench.errors import ExitCode, MtlbenchError, shortened
from mtlbench.suite.schema import COUNT, PERIOD, Range, ranged

_GIB = 1 << 30
_ASK_S = 1.0
"""Seconds between a task's checks of whether it should leave."""
_ROOM_S = 5.0


@dataclass(frozen=True)
class RayOptions:
    """Options of the Ray executor.

    Attributes:
        address: The cluster: ``auto`` for the one that this machine belongs to, ``local`` to start one here.
        shared: Whether every node sees the results folder under the same path. If not, results travel.
        cpus: CPU cores and threads per rank.
        gpus: GPUs per rank, 0 or 1.
        memory: GiB of memory that Ray reserves for a run; 0 for none.
        every: Seconds between reports of a run whose node does not see the results folder.
    """

    address: str = "auto"
    shared: bool = True
    cpus: int = ranged(1, COUNT)
    gpus: int = ranged(0, Range(0, 1))
    memory: float = ranged(0.0, PERIOD)
    every: int = ranged(10, COUNT)

    def need(self, devices: int) -> dict[str, float]:
        """Returns how much of each Ray resource one run needs.

        Args:
            devices: Ranks per run.
        """
        need = {"CPU": self.cpus * devices, "GPU": self.gpus * devices, "memory": int(self.memory * _GIB)}
        return {name: amount for name, amount in need.items() if amount}


class RayCluster:
    """Tasks on a Ray cluster, as `mtlbench.bench.executors.remote.Cluster` describes them.

    Args:
        options: Which cluster.
        devices: Ranks per run.

    Raises:
        MtlbenchError: If Ray is not installed or there is no cluster.
    """

    def __init__(self, options: RayOptions, devices: int = 1):
        self.ray = ray = _connected(options.address)
        self.need = options.need(devices)
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
            self._room = sum(int(min(node.get(name, 0) / n for name, n in self.need.items())) for node in nodes)
            self._looked = time.monotonic()
        return max(1, self._room)

    def keep(self, files: Files) -> Any:
        """Returns a reference to files in Ray's object store."""
        return self.ray.put(files)

    def submit(self, job: Job, files: Files, sources: dict[str, Any]) -> Any:
        """Returns the generator of references to the task's parcels."""
        return self._task.remote(self.bell, job, files, list(sources), *sources.values())

    def arrived(self, ticket: Any) -> tuple[list[Parcel], int | None]:
        """Returns the parcels that have arrived, and an exit code if the task was lost."""
        ray, parcels = self.ray, []
        try:
            while ray.wait([ticket], timeout=0)[0]:
                parcels.append(ray.get(next(ticket)))
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

    def cancel(self, ticket: Any) -> None:
        """Ends a task's worker."""
        self.ray.cancel(ticket, force=True)

    def ring(self) -> None:
        """Lets every task know that it should leave."""
        self.bell.ring.remote()


class _Bell:
    """An actor beside the bench that tasks ask whether they should leave. It ends with the bench."""

    def __init__(self) -> None:
        self.rung = False

    def ring(self) -> None:
        self.rung = True

    def heard(self) -> bool:
        return self.rung


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


def _task(bell: Any, job: Job, files: Files, names: list[str], *sources: Files) -> Iterator[Parcel]:
    """Body of a task: trains one run on this node."""
    import ray

    accelerators = [str(each) for each in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    if not accelerators:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A forked run would import the main module of this process, which is Ray's.
    vars(sys.modules["__main__"]).pop("__file__", None)
    by_name: Mapping[str, Files] = dict(zip(names, sources, strict=True))
    yield from serve(job, files, by_name, accelerators, _Asking(ray, bell))


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
