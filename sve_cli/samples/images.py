"""Images that stay encoded until they are needed."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from sve_cli.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes of more than 8 bits a channel
# What Pillow raises of damaged files, by where it stumbles over them: a broken PNG is a SyntaxError or a ValueError.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)
ImageItem = bytes | Path | np.ndarray


class LazyImages(Sequence[ImageItem]):
    """Encoded images of one arrow column; an item is bytes, a Path, or an (H, W) or (H, W, channels) uint8 array.

    The column is a Hugging Face image (struct of bytes and path), binary, a path, or nested lists of pixels.
    """

    def __init__(self, column: pa.ChunkedArray, root: Path | None, rows_N: np.ndarray | None = None) -> None:
        self._column = column
        self._root = root
        self._rows_N = np.arange(len(column)) if rows_N is None else rows_N
        kind = column.type
        # The fields of a struct are taken apart once: reading one field of a row is four times faster than the row.
        self._chunks = [c.field("bytes") for c in column.chunks] if pa.types.is_struct(kind) else column.chunks
        has_paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        self._paths = [c.field("path") for c in column.chunks] if has_paths else None
        self._starts = np.cumsum([0] + [len(chunk) for chunk in column.chunks])

    def __len__(self) -> int:
        return len(self._rows_N)

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...
    def __getitem__(self, index: int | slice) -> ImageItem | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self._column, self._root, self._rows_N[index])
        return self._item(int(self._rows_N[index]))

    def __iter__(self) -> Iterator[ImageItem]:
        return (self._item(int(row)) for row in self._rows_N)

    def subset(self, index_K: np.ndarray) -> LazyImages:
        """The images `index_K`, in that order; nothing is read."""
        return LazyImages(self._column, self._root, self._rows_N[index_K])

    def _item(self, row: int) -> ImageItem:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[chunk])
        value = self._chunks[chunk][place].as_py()
        if value is None and self._paths is not None:
            value = self._paths[chunk][place].as_py()
        if value is None:
            raise DataError(f"Row {row} has no image.", "Remove the row, or fill in its image.")
        if isinstance(value, str):
            return (self._root or Path()) / value
        if isinstance(value, bytes):
            return value
        try:
            return np.asarray(value, dtype=np.uint8)
        except (OverflowError, ValueError, TypeError) as error:  # TypeError: a pixel is missing
            raise DataError(f"The pixels of row {row} are not whole numbers from 0 to 255 ({error}).", "Mend the row.") from error


def is_file(path: Path) -> bool:
    """Whether a file is there; a text that is too long to be a path is none."""
    try:
        return path.is_file()
    except OSError:  # its name is too long
        return False


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images without looking at its values (paths cannot be told from text)."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    if isinstance(kind, pa.ExtensionType):
        return is_image_type(kind.storage_type)
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth:
        return depth in (2, 3) and pa.types.is_integer(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def decode_image(item: ImageItem | Image.Image) -> Image.Image:
    """The RGB image behind an item of `Samples.inputs["image"]`, or of an image that is open already.

    Raises:
        DataError: the item is not an image that can be read.
    """
    if isinstance(item, np.ndarray):
        shaped = item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 3, 4))
        if item.dtype != np.uint8 or not shaped or not item.size:
            raise DataError(
                f"An image array must be uint8 of shape (H, W) or (H, W, 1, 3 or 4), not {item.dtype} {item.shape}.",
                "Convert the images to PNG, or to uint8 with the channels last.",
            )
        return Image.fromarray(item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item).convert("RGB")
    try:
        if isinstance(item, Image.Image):
            return _rgb(item)
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            return _rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, *DAMAGE) as error:
        what = f"{len(item)} bytes" if isinstance(item, bytes) else f"'{item}'"
        raise DataError(f"Cannot read an image ({what}): {error}.", "Replace the file or remove its row.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:  # convert would cut what is above 255 off
        raise DataError(
            f"An image has more than 8 bits a channel (mode {image.mode}).", "Scale the images to 8 bits, as PNG or JPEG."
        )
    return image.convert("RGB")
