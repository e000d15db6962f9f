"""What all data sets of photographs with dense labels share: finding files, decoding, caching, the data module."""

from .files import Files
from .module import DenseData

__all__ = ["DenseData", "Files"]
