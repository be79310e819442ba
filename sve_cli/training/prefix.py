"""What the frozen first blocks give, computed once: for every training sample before the first step, or for all members of a step.

With `method.last_blocks` the blocks below the first that trains are the same function of a sample for every member and epoch, as
long as nothing in them is random. `train.prefix_cache_mb` keeps what they give for each sample. The store is filled before the
first step, in batches that depend on the data only: a resumed run reads the same numbers to the bit. Without a store, members that
share their batches (`method.member_batches: shared`) share what the frozen blocks give for a batch. In a step the network's own
forward runs, with those blocks passing on what they get and the first that trains being handed these values.
Shapes: N samples, B batch, W tokens of the longest in a batch, F features, S tokens of all samples one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sve_cli.backbone import Inputs, block_of
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.recipe.spec import TrainSpec
from sve_cli.tasks.common import Encoded, tensor_to

ROWS = 64  # samples in a batch that fills the store
HINT = "Write train.prefix_cache_mb: 0."
Run = Callable[[Inputs, int], Tensor]  # inputs, member -> that member's logits, as a training step computes them


class Prefix:
    """The frozen first blocks of an ensemble's network, and the store of what they give (empty until `fill`).

    Args:
        ensemble: its network is left as it is outside of `given`.
        run: one member's forward pass in training mode.

    Raises:
        SveError: no block is frozen, or their result is random, is not the same for all members, or cannot be put in again.
    """

    def __init__(self, ensemble: Ensemble, encoded: Encoded, run: Run, device: torch.device) -> None:
        self.encoded, self.run, self.device = encoded, run, device
        self.frozen, self.first = _frozen_blocks(ensemble, lambda: self._seeded(self._inputs(np.arange(1)), 0))
        self.stored: Tensor | None = None
        self.starts_N = self.counts_N = np.zeros(0, dtype=np.int64)
        lengths_N = encoded.lengths_N
        self.order_N = np.arange(len(encoded)) if lengths_N is None else np.argsort(lengths_N, kind="stable")
        self._probe(ensemble.n_members)

    def _inputs(self, rows_B: np.ndarray) -> Inputs:
        return tensor_to(self.encoded.batch(rows_B), self.device)

    def _probe(self, n_members: int) -> None:
        rows = self.order_N[[0, -1]]
        with torch.no_grad():
            inputs = self._inputs(rows)
            once, again = (self._hidden(inputs, seed) for seed in (0, 1))
            own = next((m for m in range(1, n_members) if not torch.equal(once, self._hidden(inputs, 0, m))), None)
            mask = inputs.get("attention_mask")
        if not torch.equal(once, again):
            raise SveError(
                "The frozen blocks have dropout, so that what they give cannot be kept.",
                f"Write method.params.dropout: off. {HINT}",
            )
        if own is not None:  # trained layers that are frozen now: a transferred run
            raise SveError(f"The frozen blocks of member {own} are not those of member 0.", HINT)
        if mask is not None and once.shape[:2] != mask.shape:
            raise SveError("What the frozen blocks of this network give is not one vector a token.", HINT)
        self.texts, self.shape, self.dtype = mask is not None, once.shape[2 if mask is not None else 1 :], once.dtype

    def _hidden(self, inputs: Inputs, seed: int, member: int = 0) -> Tensor:
        """What enters the first block that trains."""
        found: list[Tensor] = []

        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.append(_entering(args, kwargs)[0].detach().clone())
            raise _Reached

        handle = self.first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(_Reached):
                self._seeded(inputs, seed, member)
        finally:
            handle.remove()
        return found[0]

    def _seeded(self, inputs: Inputs, seed: int, member: int = 0) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.run(inputs, member)

    def megabytes(self) -> float:
        """Size of the whole store."""
        lengths_N = self.encoded.lengths_N
        units = int(lengths_N.sum()) if self.texts and lengths_N is not None else len(self.encoded)
        return units * self.shape.numel() * self.dtype.itemsize / 1e6

    def fill(self) -> None:
        """Compute and keep every sample's values, and see that the network gives with them what it gives without.

        Raises:
            SveError: it gives something else.
        """
        counts_N, parts = np.ones(len(self.encoded), dtype=np.int64), []
        with torch.no_grad():
            for start in range(0, len(self.order_N), ROWS):
                rows_B = self.order_N[start : start + ROWS]
                inputs = self._inputs(rows_B)
                hidden = self._hidden(inputs, 0)
                if self.texts:
                    seen_BW = inputs["attention_mask"].bool()
                    counts_N[rows_B] = seen_BW.sum(1).cpu().numpy()
                    hidden = hidden[seen_BW]
                parts.append(hidden.cpu())
            self.stored = torch.cat(parts)
            ends = np.cumsum(counts_N[self.order_N])
            self.starts_N = np.empty(len(self.encoded), dtype=np.int64)
            self.starts_N[self.order_N] = ends - counts_N[self.order_N]
            self.counts_N = counts_N
        self.check()

    def check(self) -> None:
        """See that the network gives with what is put in what it gives without.

        Raises:
            SveError: it gives something else.
        """
        rows_B = self.order_N[[0, -1]]
        inputs = self._inputs(rows_B)
        with torch.no_grad():
            plain = self._seeded(inputs, 0)
            with self.given(rows_B, inputs):
                mine = self._seeded(inputs, 0)
        allowed = {torch.float32: 1e-4, torch.float64: 1e-9}.get(self.dtype, 0.05)
        if not float((plain - mine).abs().max()) <= allowed * (1 + float(plain.abs().max())):
            raise SveError("This network needs its frozen blocks for more than what follows them.", HINT)

    def of(self, rows_B: np.ndarray, inputs: Inputs) -> Tensor:
        """The values of these samples, laid out as the batch `inputs` is: (B, W, F); stored ones are 0 where it is padded."""
        if self.stored is None:
            with torch.no_grad():
                return self._hidden(inputs, 0)
        if not self.texts:
            return self.stored[torch.from_numpy(self.starts_N[rows_B])].to(self.device)
        seen_BW = inputs["attention_mask"].bool().reshape(len(rows_B), -1)
        pairs = zip(self.starts_N[rows_B], self.counts_N[rows_B], strict=True)
        source_S = torch.from_numpy(np.concatenate([np.arange(s, s + n) for s, n in pairs]))
        hidden_BWF = torch.zeros((*seen_BW.shape, *self.shape), dtype=self.dtype, device=self.device)
        hidden_BWF[seen_BW] = self.stored[source_S].to(self.device)
        return hidden_BWF

    @contextmanager
    def given(self, rows_B: np.ndarray, inputs: Inputs, copies: int = 1) -> Iterator[None]:
        """Within: the network does not compute its frozen blocks; the first that trains gets the values of these samples, so many
        times one after another."""
        hidden = self.of(rows_B, inputs)
        hidden = hidden if copies == 1 else hidden.repeat(copies, *[1] * (hidden.ndim - 1))

        def put_in(module: nn.Module, args: Any, kwargs: Any) -> Any:
            _, key = _entering(args, kwargs)
            return ((hidden, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: hidden})

        handle = self.first.register_forward_pre_hook(put_in, with_kwargs=True)
        try:
            for block in self.frozen:
                block.forward = _pass_on
            yield
        finally:
            handle.remove()
            for block in self.frozen:
                vars(block).pop("forward", None)  # the class's own again


def prefix_of(
    ensemble: Ensemble,
    encoded: Encoded,
    spec: TrainSpec,
    dtype: torch.dtype,
    device: torch.device,
    warn: Callable[[str], None],
    fill: bool = True,
) -> Prefix | None:
    """The store that `train.prefix_cache_mb` asks for, or an empty one where members share their batches and blocks are frozen.

    None: neither; also where the store would be larger than allowed (`warn` is told). `fill` False: it stays empty, to see
    what would be refused.

    Raises:
        SveError: the store was asked for and cannot be: nothing is frozen, or what is frozen gives something else each time.
    """
    own_pass = not ensemble.shares_features and ensemble.n_members > 1 and spec.member_execution == "batched"
    shares = own_pass and ensemble.member_batches == "shared"
    if not spec.prefix_cache_mb and not shares:
        return None
    if spec.prefix_cache_mb and encoded.augments:
        raise SveError(
            "train.prefix_cache_mb is set, but images are augmented anew at every step.", f"Write data.augment: none. {HINT}"
        )

    def run(inputs: Inputs, member: int) -> Tensor:
        ensemble.set_training(True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return ensemble(inputs, (member,)).logits_MBC

    try:
        prefix = Prefix(ensemble, encoded, run, device)
        fits = prefix.megabytes() <= spec.prefix_cache_mb
        (prefix.fill if fits and fill else prefix.check)()
    except SveError:
        if spec.prefix_cache_mb:
            raise
        return None  # every member computes its own
    if spec.prefix_cache_mb and not fits:
        warn(
            f"The frozen blocks' outputs take {prefix.megabytes():.0f} MB, more than train.prefix_cache_mb: computed at every step."
        )
    return prefix if fits or shares else None


class _Reached(Exception):
    """The first block that trains was reached."""


def _pass_on(hidden: Any = None, *args: Any, **kwargs: Any) -> Any:
    return kwargs["hidden_states"] if hidden is None else hidden


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, str | None]:
    """What enters a block, and the name it is given by (None: the first of those without)."""
    return (args[0], None) if args else (kwargs["hidden_states"], "hidden_states")


def _frozen_blocks(ensemble: Ensemble, run: Callable[[], object]) -> tuple[list[nn.Module], nn.Module]:
    """The blocks through which no gradient has to pass, and the one after them.

    Raises:
        SveError: there are none, or they are not one list of blocks, each called once, that give one tensor.
    """
    names = dict.fromkeys(b for n, _ in ensemble.network.named_modules() if (b := block_of(n + ".")))
    called: list[tuple[str, bool]] = []
    plain = True

    def entered(name: str) -> Any:
        return lambda module, args, kwargs: called.append((name, _entering(args, kwargs)[0].requires_grad))

    def left(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal plain
        plain = plain and isinstance(output, Tensor)

    blocks = {name: ensemble.network.get_submodule(name) for name in names}
    handles = [block.register_forward_pre_hook(entered(name), with_kwargs=True) for name, block in blocks.items()]
    handles += [block.register_forward_hook(left) for block in blocks.values()]
    try:
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    order = [name for name, _ in called]
    known = next((i for i, (_, trains) in enumerate(called) if trains), len(called)) - 1
    if known < 1:
        raise SveError("train.prefix_cache_mb is set, but no block is frozen.", f"Set method.last_blocks. {HINT}")
    parents = {name.rpartition(".")[0] for name in order[: known + 1]}
    if len(parents) > 1 or len(set(order)) < len(order) or not plain:
        raise SveError("The frozen blocks of this network are not a plain list, so that they cannot be left out.", HINT)
    return [blocks[name] for name in order[:known]], blocks[order[known]]
