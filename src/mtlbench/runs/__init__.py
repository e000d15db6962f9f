"""Runs: what a run is (`spec`), which runs a method needs (`plan`), and where they lie (`store`). Free of torch."""
