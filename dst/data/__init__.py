"""Data sets as batches, device-resident or streamed from files. Knows nothing of sparsity or training."""

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.cache import content_digest, load
from dst.data.dataset import DataError, Dataset, NotHereError, Split
from dst.data.files import Files
from dst.data.loader import Loader, loader, samples_of
from dst.data.normalise import channel_statistics
from dst.data.shard import WHOLE, Shard
from dst.data.splits import train_val_split
from dst.data.stream import Stream

__all__ = [
    "WHOLE",
    "Augment",
    "Batches",
    "DataError",
    "Dataset",
    "Files",
    "Loader",
    "NotHereError",
    "Shard",
    "Split",
    "Stream",
    "channel_statistics",
    "content_digest",
    "load",
    "loader",
    "samples_of",
    "train_val_split",
]
