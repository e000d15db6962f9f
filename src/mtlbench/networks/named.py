"""`NamedModules`: modules by the names of tasks, whatever these are."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView

from torch import nn

_TAKEN = frozenset(dir(nn.ModuleDict()))
_MARK = "task:"


def stored(name: str) -> str:
    """Returns the name under which a module is stored, and with which the names of its weights begin.

    Modules are attributes, so torch refuses the names of attributes (``clear``, ``keys``, ``type``) and names with a
    dot. Those get another form, different for different names. All others are stored as they are.
    """
    if name and name not in _TAKEN and "." not in name and not name.startswith(_MARK):
        return name
    return _MARK + name.replace("~", "~0").replace(".", "~1")


def _original(key: str) -> str:
    if not key.startswith(_MARK):
        return key
    return key.removeprefix(_MARK).replace("~1", ".").replace("~0", "~")


class NamedModules(nn.ModuleDict):
    """A `torch.nn.ModuleDict` that takes every name."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(stored(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(stored(key), module)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(stored(key))

    def __contains__(self, key: str) -> bool:
        return stored(key) in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        """Returns the names as they were given."""
        return self._by_name().keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Returns the modules with the names as they were given."""
        return self._by_name().items()

    def _by_name(self) -> dict[str, nn.Module]:
        return {_original(key): module for key, module in self._modules.items() if module is not None}
