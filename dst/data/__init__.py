"""Data sets as device-resident batches. Knows nothing of sparsity or training."""

from dst.data.batches import Augment, Batches, channel_statistics
from dst.data.cache import load
from dst.data.dataset import DataError, Dataset, Split
from dst.data.splits import train_val_split

__all__ = ["Augment", "Batches", "DataError", "Dataset", "Split", "channel_statistics", "load", "train_val_split"]
