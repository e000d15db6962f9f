"""``mtlbench data``."""

from __future__ import annotations

from mtlbench import registry
from mtlbench import study as studies
from mtlbench import suite as suites


def run(name: str, folder: str | None, overrides: list[str]) -> int:
    """Tells what a suite needs and what is there; exit code 2 if something is missing."""
    suite = suites.load(name, overrides)
    root = studies.root_of(suite, studies.Local(data=folder))
    module = registry.load(suite.data.module)
    chosen = {task: module.TASKS[task] for task in (suite.tasks or module.TASKS) if task in module.TASKS}
    data = module(root, tasks=chosen, **suite.data.options)
    print(f"Suite {suite.name}: {suite.data.module}, folder {root or 'none needed, or not given'}")
    missing = data.missing()
    if missing:
        print("\n".join(missing))
        return 2
    absent = data.absent_tasks()
    for task in chosen:
        optional = suite.tasks[task].optional if task in suite.tasks else False
        print(f"  {task:12} {'absent' + (' (optional)' if optional else '') if task in absent else 'there'}")
    data.tasks = {task: value for task, value in chosen.items() if task not in absent}
    for split in module.SPLITS:
        print(f"  {split:12} {len(data.samples(split))} samples")
    required = [task for task in absent if task not in suite.tasks or not suite.tasks[task].optional]
    return 2 if required else 0
