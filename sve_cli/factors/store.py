"""A content-addressed store of decompositions: one safetensors entry per weight, shared between runs and processes.

An entry is written to a temporary file and renamed, so that a reader sees a whole entry or none; a lock per entry keeps two
processes from decomposing the same weight. Every load checks a checksum of the content; a damaged entry is removed and
computed again, with a `warnings.warn`. A killed run keeps what it wrote.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sve_cli.errors import SveError
from sve_cli.factors.decomposition import (
    ALGORITHM,
    STORE_DTYPE,
    Factors,
    LayerStatistics,
    check_weight,
    decompose_weight,
    side_of,
    statistics,
    tensor_bytes,
    verify,
    weight_key,
)

FORMAT = "sve-factors/1"

LayerResult = tuple[str, LayerStatistics, bool]


def cache_root() -> Path:
    """$SVE_CACHE_DIR, or ~/.cache/sve."""
    return Path(os.path.expanduser(os.environ.get("SVE_CACHE_DIR") or "~/.cache/sve"))


class _Damaged(Exception):
    """An entry that cannot be what was written."""


class FactorStore:
    """Decompositions on disk, under `root`/factors.

    Attributes:
        folder: where the entries are.
        hits: how many times `get` found an entry.
        computed: how many times `get` decomposed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.folder = (cache_root() if root is None else Path(root)) / "factors"
        self.hits = 0
        self.computed = 0

    def path(self, key: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an entry for the key. Its content is checked when it is loaded."""
        return self.path(key).is_file()

    def get(self, weight_OI: Tensor, name: str) -> Factors:
        """The factors of a weight, on the CPU: loaded, or decomposed, verified and written.

        `name` only serves error messages. A loaded entry is identical to the bit to what was written.

        Raises:
            CheckpointError: the weight cannot be decomposed; names the layer.
            SveError: the store cannot be written or read.
        """
        check_weight(weight_OI, name)
        key = weight_key(weight_OI)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        try:
            factors = self._load(key, shape)
        except _Damaged:
            factors = None  # Judged again below, under the lock: another process may be mending it now.
        if factors is not None:
            self.hits += 1
            return factors
        with self._locked(key):
            factors = self._load_or_remove(key, shape)
            if factors is not None:
                self.hits += 1
                return factors
            factors = decompose_weight(weight_OI, name, key)
            verify(weight_OI, factors, name)
            self._write(factors)
        self.computed += 1
        return factors

    def decompose_all(
        self,
        weights: Iterable[tuple[str, Callable[[], Tensor]]],
        on_layer: Callable[[str, LayerStatistics, bool], None] | None = None,
    ) -> list[LayerResult]:
        """Decompose layers one at a time: at most one weight and its factors are in memory.

        Tied weights have one key and are decomposed once; layers done by an earlier or killed run are loaded.

        Args:
            weights: (name, function that returns the weight).
            on_layer: told (name, statistics, True when it was in the store) after each layer.

        Returns:
            One (name, statistics, cached) per layer, in order.

        Raises:
            CheckpointError, SveError: as `get`.
        """
        results: list[LayerResult] = []
        for name, load in weights:
            start, computed = time.perf_counter(), self.computed
            factors = self.get(load(), name)
            result = (name, statistics(factors, time.perf_counter() - start), self.computed == computed)
            results.append(result)
            if on_layer is not None:
                on_layer(*result)
        return results

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        lock = FileLock(self.path(key).with_suffix(".lock"))
        try:
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise self._cannot("write to", error) from error
        try:
            yield
        finally:
            lock.release()

    def _load(self, key: str, shape: tuple[int, int]) -> Factors | None:
        """The entry, or None when there is none.

        Raises:
            _Damaged: it is truncated, altered, or of another format.
        """
        try:
            with safe_open(self.path(key), framework="pt", device="cpu") as entry:
                metadata = entry.metadata() or {}
                if set(entry.keys()) != {"basis", "s"}:
                    raise _Damaged(f"it holds {sorted(entry.keys())}")
                basis, s_R = entry.get_tensor("basis"), entry.get_tensor("s")
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            raise _Damaged(str(error)) from error
        except OSError as error:
            raise self._cannot("read", error) from error
        factors = Factors(basis, s_R, side_of(shape), shape, key)
        short = min(shape)
        if tuple(basis.shape) != (short, short) or tuple(s_R.shape) != (short,):
            raise _Damaged(f"its tensors have shapes {tuple(basis.shape)} and {tuple(s_R.shape)}")
        if basis.dtype != STORE_DTYPE or s_R.dtype != STORE_DTYPE:
            raise _Damaged(f"its tensors are {basis.dtype} and {s_R.dtype}")
        if metadata != _metadata(factors):
            raise _Damaged("its content does not match its checksum and description")
        return factors

    def _load_or_remove(self, key: str, shape: tuple[int, int]) -> Factors | None:
        """As `_load`, under the lock: a damaged entry is removed, with a warning."""
        try:
            return self._load(key, shape)
        except _Damaged as damage:
            path = self.path(key)
            warnings.warn(f"The stored decomposition '{path}' is damaged ({damage}); computing it again.", stacklevel=3)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise self._cannot("remove a damaged entry from", error) from error
            return None

    def _write(self, factors: Factors) -> None:
        """Write an entry under its lock: a temporary file in the same folder, then a rename."""
        path = self.path(factors.key)
        temporary = path.with_suffix(".tmp")  # One writer at a time, so a killed run's leftover is overwritten.
        try:
            temporary.write_bytes(save({"basis": factors.basis, "s": factors.s_R}, _metadata(factors)))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):  # a folder of that name, say: the first error is the one to tell
                temporary.unlink()
            raise self._cannot("write to", error) from error

    def _cannot(self, what: str, error: OSError) -> SveError:
        return SveError(
            f"Cannot {what} the store of decompositions '{self.folder}' ({error.strerror or error}).",
            "Free some space there, or set SVE_CACHE_DIR to a folder on another disk (an existing store can be moved as it is).",
        )


def _metadata(factors: Factors) -> dict[str, str]:
    """What an entry says about itself; the checksum covers the tensors and the other lines."""
    metadata = {
        "format": FORMAT,
        "algorithm": ALGORITHM,
        "side": factors.side,
        "shape": f"{factors.shape[0]}x{factors.shape[1]}",
        "key": factors.key,
    }
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    digest.update(tensor_bytes(factors.basis))
    digest.update(tensor_bytes(factors.s_R))
    return metadata | {"sha256": digest.hexdigest()}
