"""The shipped data modules. In a source tree they are the files of the top-level folder ``data_modules/``.

A wheel holds those files here, so that ``mtlbench`` is the only name that an installation takes.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[3] / "data_modules")]
