"""A run whose ranks are spread over nodes ends as one whose ranks share a machine."""

from __future__ import annotations

from pathlib import Path

from mtlbench.bench.executors.local import LocalExecutor, Part, free_port
from mtlbench.errors import ExitCode
from mtlbench.runs.store import RunFolder
from tests.support.command_line import SMALL, mtlbench, outcome, specs, wait_for


def trained(root: Path, *nodes: LocalExecutor) -> RunFolder:
    """Trains a run on nodes that see the same folder; all must end well."""
    (spec,) = specs(*SMALL, "trainer.steps=6", "trainer.checkpoint_every=3", "methods=[pcgrad]")
    for node in nodes:
        node.start(spec)
    for node in nodes:
        [(_, code)] = wait_for(lambda node=node: list(node.ended()))
        assert code == ExitCode.DONE, (root / "logs" / f"{spec.run_id}.log").read_text()
    return RunFolder(root, spec.run_id)


def test_two_nodes_of_one_rank_equal_one_node_of_two(tmp_path: Path) -> None:
    port, one = free_port(), {"jobs": 1, "threads": 1}
    parts = [LocalExecutor(tmp_path / "two", devices=1, **one, part=Part(n, 2, "127.0.0.1", port)) for n in range(2)]
    spread = trained(tmp_path / "two", *parts)
    together = trained(tmp_path / "one", LocalExecutor(tmp_path / "one", devices=2, **one))
    assert outcome(spread) == outcome(together)
    assert (spread.result() or {})["cost"]["devices"] == 2


def test_nodes_without_a_shared_folder_cannot_train_a_run_together(tmp_path: Path) -> None:
    words = ("bench", "digits", "--executor", "ray", "--option", "shared=false", "--option", "nodes=2")
    answer = mtlbench(tmp_path, *words)
    assert answer.code == ExitCode.REFUSED and "Found nodes=2 and shared=false" in answer.text, answer.text
