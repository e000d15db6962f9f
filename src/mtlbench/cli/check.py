"""``mtlbench check``."""

from __future__ import annotations


def run(target: str) -> int:
    """Runs the contract tests on a method, balancer or data module; exit code 1 if one fails."""
    import torch

    from mtlbench import registry, testing
    from mtlbench.data import MTLDataModule
    from mtlbench.training.trainer import quiet_lightning

    quiet_lightning()
    torch.set_num_threads(1)
    thing = registry.load(target) if ":" in target else registry.find(target)
    is_data = isinstance(thing, type) and issubclass(thing, MTLDataModule)
    print(f"Checking {target} …", flush=True)
    findings = testing.check_data_module(target) if is_data else testing.check_method(target)
    for finding in findings:
        print(f"  {'ok    ' if finding.ok else 'FAILED'}  {finding.check}")
        if finding.detail:
            print("          " + finding.detail.replace("\n", "\n          "))
    failed = sum(not finding.ok for finding in findings)
    print(f"{len(findings) - failed} of {len(findings)} checks passed.")
    return 1 if failed else 0
