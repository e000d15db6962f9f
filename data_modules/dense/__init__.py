"""What all data sets of photographs with dense labels share: finding files, decoding, caching, the data module."""

from data_modules.dense.files import Files
from data_modules.dense.module import DenseData

__all__ = ["DenseData", "Files"]
