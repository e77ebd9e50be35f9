"""Options of data sets and batches. Needs no torch, so that configs are checked without it."""

from dataclasses import dataclass
from typing import Annotated

from dst.options import ASIDE, PATH, SHA256, Each, Excludes, Needs, OneOf, Range, Text

Size = Annotated[int, Range(1, 4096), "images are brought to size x size pixels; null: as they are"]
CenterCrop = Annotated[
    float,
    Range(0, 1, "(]"),
    Needs("size"),
    "scale and crop to this fraction of the shorter side around the centre (ImageNet: 224 and 0.875); null: stretch",
]
Mean = Annotated[
    list[float], Each(Range()), Needs("std"), "mean of the pixels, per channel; null: the training split's"
]
Std = Annotated[
    list[float],
    Each(Range(1e-6)),
    Needs("mean"),
    "standard deviation of the pixels, per channel; null: the training split's",
]
BatchSize = Annotated[int, Range(1), "samples per step"]
ValFraction = Annotated[
    float, Range(0, 1, "[)"), "the share of the training set to validate on; 0: train on all, validate on none"
]
Storage = Annotated[
    str,
    OneOf("auto", "resident", "stream"),
    "image files; resident: decoded in memory; stream: when needed; auto: resident up to 4 GiB; same batches",
]
Folder = Text(r"(?s).*\S.*", "the name of a folder")


@dataclass
class Augment:
    """Training-time augmentation: random crop after padding, then horizontal flip with probability one half."""

    crop_padding: Annotated[
        int, Range(0, 1024), "pixels added on each side of an image before it is cropped at random"
    ] = 0
    padding_mode: Annotated[
        str,
        OneOf("reflect", "zeros"),
        Needs("crop_padding"),
        "reflect: pad with mirrored pixels; zeros: with black ones",
    ] = "reflect"
    flip: Annotated[bool, "flip images left to right with probability one half"] = False
    resized_crop_scale: Annotated[
        list[float] | None,
        Each(Range(0, 1, "(]"), least=2, most=2, order="<="),
        Needs("size"),
        Excludes("crop_padding"),
        "random-resized crop with an area between these shares; image files only",
    ] = None


@dataclass
class Data:
    """The data set. The validation split is a stratified part of the training set."""

    digest: Annotated[
        str | None,
        SHA256,
        "identifies the content; null: the digest of the published set, or of what is in root",
    ] = None
    val_fraction: ValFraction = 0.1
    split_seed: Annotated[int, Range(0), Needs("val_fraction"), "chooses the samples to validate on"] = 0
    size: Size | None = None
    center_crop: CenterCrop | None = None
    mean: Mean | None = None
    std: Std | None = None
    storage: Annotated[Storage, ASIDE] = "auto"
    root: Annotated[str, ASIDE, PATH, Folder, "where raw files are, or are downloaded to"] = "outputs/.datasets"
    cache: Annotated[str, ASIDE, PATH, Folder, "where decoded sets are kept"] = "outputs/.cache"
    download: Annotated[bool, ASIDE, "download what is missing"] = True
