"""The decomposition against float64 LAPACK, and the store under damage, interruption and competition."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sve_cli.errors import CheckpointError, SveError
from sve_cli.factors import (
    Factors,
    FactorStore,
    LayerStatistics,
    cache_root,
    decompose_weight,
    decomposition,
    in_out,
    statistics,
    store,
    verify,
    weight_key,
)


def random_weight(o: int, i: int, seed: int = 0) -> Tensor:
    return torch.randn(o, i, generator=torch.Generator().manual_seed(seed)) * 0.02


def with_values(o: int, i: int, values: Tensor) -> Tensor:
    """A weight with the given singular values (up to float32 rounding)."""
    u, _ = torch.linalg.qr(random_weight(o, len(values), 1).double())
    v, _ = torch.linalg.qr(random_weight(i, len(values), 2).double())
    return ((u * values.double()) @ v.T).float()


def repeated(n: int) -> Tensor:
    return torch.cat([torch.ones(n // 2), torch.full((n // 4,), 0.5), torch.zeros(n - n // 2 - n // 4)])


def zero_columns() -> Tensor:
    weight = random_weight(60, 40)
    weight[:, 5:25] = 0
    return weight


WEIGHTS = {
    "square": random_weight(96, 96),
    "tall": random_weight(160, 40),
    "wide": random_weight(40, 160),
    "condition 1e8, tall": with_values(120, 80, torch.logspace(0, -8, 80)),
    "condition 1e8, wide": with_values(80, 120, torch.logspace(0, -8, 80)),
    "repeated": with_values(100, 64, repeated(64)),
    "identity": torch.eye(32),
    "zero": torch.zeros(30, 20),
    "zero columns": zero_columns(),
    "rank 1": with_values(50, 40, torch.ones(1)),
    "1xN": random_weight(1, 50),
    "Nx1": random_weight(50, 1),
    "1x1": torch.tensor([[-3.0]]),
    "tiny": random_weight(30, 40) * 1e-34,
    "huge": random_weight(40, 30) * 1e36,
    "bf16": random_weight(64, 48).bfloat16(),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_decomposition_agrees_with_float64_lapack(case: str) -> None:
    weight = WEIGHTS[case]
    exact = weight.double()
    factors = decompose_weight(weight, case)
    short = min(weight.shape)
    assert factors.side == ("in" if weight.shape[1] <= weight.shape[0] else "out")
    assert factors.basis.shape == (short, short) and factors.s_R.shape == (short,)
    assert factors.basis.dtype == factors.s_R.dtype == torch.float32
    reference = torch.linalg.svdvals(exact)
    scale = float(reference[0]) or 1.0
    assert float((factors.s_R.double() - reference).abs().max()) <= 1e-7 * scale
    assert bool((factors.s_R[:-1] >= factors.s_R[1:]).all()) and float(factors.s_R[-1]) >= 0
    basis = factors.basis.double()
    assert float((basis.T @ basis - torch.eye(short).double()).abs().max()) <= 1e-6
    image = exact @ basis if factors.side == "in" else exact.T @ basis
    gram = image.T @ image
    assert float((gram - gram.diagonal().diag()).abs().max()) <= 1e-6 * scale**2
    a_RI, b_OR = in_out(weight, factors)
    assert a_RI.dtype == b_OR.dtype == torch.float32
    assert float((b_OR.double() @ a_RI.double() - exact).norm()) <= 1e-6 * float(exact.norm())
    result = verify(weight, factors, case)
    assert max(result.s_error, result.orthogonality, result.diagonality, result.reconstruction) <= 1e-7


def test_small_singular_values_keep_their_digits() -> None:
    """The plain root of the Gram matrix's eigenvalue is 12 % off at condition 1e8; the second pass is not."""
    weight = WEIGHTS["condition 1e8, tall"]
    reference = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(decompose_weight(weight, "w").s_R.double(), reference, rtol=1e-5, atol=0)


def test_signs_make_the_largest_component_positive() -> None:
    for weight in (random_weight(50, 30), random_weight(30, 50)):
        basis = decompose_weight(weight, "w").basis
        assert bool((basis.max(dim=0).values == basis.abs().max(dim=0).values).all())


def test_lapack_is_the_fallback_when_eigh_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    weight = random_weight(50, 30)
    expected = decompose_weight(weight, "w")
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    actual = decompose_weight(weight, "w")
    torch.testing.assert_close(actual.basis, expected.basis, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.s_R, expected.s_R)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    with pytest.raises(CheckpointError, match="blocks.3.qkv"):
        decompose_weight(weight, "blocks.3.qkv")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_names_the_layer(value: float, tmp_path: Path) -> None:
    weight = random_weight(20, 10)
    weight[3, 4] = value
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.mlp\.fc1' holds 1 values that are not finite"):
        FactorStore(tmp_path).get(weight, "blocks.0.mlp.fc1")
    assert not FactorStore(tmp_path).has(weight_key(weight))


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 4), torch.zeros(3, 3, dtype=torch.int8)])
def test_what_is_no_matrix_of_floats_is_refused(weight: Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'odd'"):
        FactorStore(tmp_path).get(weight, "odd")


def faulty(kind: str, factors: Factors) -> Factors:
    basis, s_R = factors.basis.clone(), factors.s_R.clone()
    if kind == "s_error":
        s_R[4] *= 1 + 1e-4
    elif kind == "orthogonality":
        basis[:, 2] *= 1 + 1e-5
    elif kind == "diagonality":  # Orthogonal, and it reconstructs, but it is no singular basis.
        basis, _ = torch.linalg.qr(random_weight(30, 30, 7))
    else:
        s_R[0] = math.nan
    return replace(factors, basis=basis, s_R=s_R)


@pytest.mark.parametrize("kind", ["s_error", "orthogonality", "diagonality", "nan"])
def test_verify_finds_each_fault(kind: str) -> None:
    weight = random_weight(50, 30)
    factors = decompose_weight(weight, "w")
    with pytest.raises(CheckpointError, match=f"'layer.7'.*{'s_error' if kind == 'nan' else kind}"):
        verify(weight, faulty(kind, factors), "layer.7")


def test_verify_finds_another_weights_factors() -> None:
    with pytest.raises(CheckpointError):
        verify(random_weight(50, 30), decompose_weight(random_weight(50, 30, 5), "w"), "w")


def test_key_depends_on_the_values_and_the_shape_only() -> None:
    weight = random_weight(24, 16).bfloat16()
    assert weight_key(weight) == weight_key(weight.float()) == weight_key(weight.double())
    assert weight_key(weight) == weight_key(weight.T.contiguous().T)
    assert weight_key(weight) != weight_key(weight.reshape(16, 24))
    other = weight.clone()
    other[0, 0] += 1
    assert weight_key(weight) != weight_key(other)


def test_statistics_of_known_values() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.01])
    factors = Factors(torch.eye(10), values, "in", (20, 10), "")
    total = sum(v * v for v in values.tolist())
    actual = statistics(factors, 1.5)
    assert (actual.shape, actual.rank, actual.near_equal, actual.seconds) == ((20, 10), 10, 1, 1.5)
    assert (actual.energy_top10, actual.condition) == pytest.approx((16 / total, 400.0))
    zeros = statistics(replace(factors, s_R=torch.tensor([1.0] + [0.0] * 9)), 0.0)
    assert (zeros.rank, zeros.near_equal, zeros.condition, zeros.energy_top10) == (1, 8, math.inf, 1.0)
    assert statistics(replace(factors, s_R=torch.zeros(10)), 0.0).energy_top10 == 0.0


def test_second_get_is_a_hit_and_identical_to_the_bit(tmp_path: Path) -> None:
    weight = random_weight(40, 60)
    first_store, second_store = FactorStore(tmp_path), FactorStore(tmp_path)
    first, second = first_store.get(weight, "w"), second_store.get(weight.clone(), "another name")
    assert (first_store.hits, first_store.computed, second_store.hits, second_store.computed) == (0, 1, 1, 0)
    assert torch.equal(first.basis, second.basis) and torch.equal(first.s_R, second.s_R)
    assert (first.side, first.shape, first.key) == (second.side, second.shape, second.key)
    assert second_store.path(first.key) == tmp_path / "factors" / first.key[:2] / f"{first.key}.safetensors"


def test_the_store_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVE_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert FactorStore().folder == tmp_path / "elsewhere" / "factors"
    monkeypatch.delenv("SVE_CACHE_DIR")
    assert cache_root() == Path.home() / ".cache" / "sve"


def test_decompose_all_decomposes_tied_weights_once_and_resumes(tmp_path: Path) -> None:
    tied, own = random_weight(30, 20), random_weight(30, 20, 1)
    layers = [("embed", lambda: tied), ("head", lambda: tied.clone()), ("fc", lambda: own)]
    told: list[tuple[str, LayerStatistics, bool]] = []
    first = FactorStore(tmp_path)
    results = first.decompose_all(layers, lambda *result: told.append(result))
    assert [(name, cached) for name, _, cached in results] == [("embed", False), ("head", True), ("fc", False)]
    assert told == results and first.computed == 2
    assert all(stats.shape == (30, 20) and stats.seconds > 0 for _, stats, _ in results)
    assert [cached for _, _, cached in FactorStore(tmp_path).decompose_all(layers)] == [True, True, True]


def test_a_killed_run_keeps_what_it_wrote(tmp_path: Path) -> None:
    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    weight = random_weight(30, 20)
    with pytest.raises(KeyboardInterrupt):
        FactorStore(tmp_path).decompose_all([("a", lambda: weight), ("b", interrupt)])
    again = FactorStore(tmp_path)
    assert [cached for _, _, cached in again.decompose_all([("a", lambda: weight)])] == [True]


def damage(kind: str, path: Path, content: bytes) -> None:
    if kind == "truncated":
        path.write_bytes(content[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another weight's entry":
        other = FactorStore(path.parents[2])
        path.write_bytes(other.path(other.get(random_weight(30, 20, 9), "other").key).read_bytes())
    else:
        at = {"header byte": 40, "first tensor byte": len(content) - 4 * (20 * 20 + 20), "last byte": len(content) - 1}[kind]
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("kind", ["truncated", "empty", "another weight's entry", "header byte", "first tensor byte", "last byte"])
def test_a_damaged_entry_is_found_and_computed_again(kind: str, tmp_path: Path) -> None:
    weight = random_weight(30, 20)
    factors = FactorStore(tmp_path).get(weight, "w")
    basis, s_R = factors.basis.clone(), factors.s_R.clone()
    path = FactorStore(tmp_path).path(factors.key)
    content = path.read_bytes()
    damage(kind, path, content)
    again = FactorStore(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        mended = again.get(weight, "w")
    assert (again.hits, again.computed) == (0, 1)
    assert torch.equal(mended.basis, basis) and torch.equal(mended.s_R, s_R)
    again.get(weight, "w")
    assert again.hits == 1


def test_an_interrupted_write_leaves_no_readable_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    weight = random_weight(30, 20)
    key = weight_key(weight)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        FactorStore(tmp_path).get(weight, "w")
    assert not FactorStore(tmp_path).has(key)
    after = FactorStore(tmp_path)
    after.get(weight, "w")
    assert after.computed == 1 and after.has(key)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_says_where_and_how_to_move_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SveError, match="No space left on device.*SVE_CACHE_DIR") as caught:
        FactorStore(tmp_path).get(random_weight(30, 20), "w")
    assert str(tmp_path) in caught.value.message and caught.value.exit_code == 2


def test_a_folder_where_an_entry_is_to_be_written_is_a_user_error(tmp_path: Path) -> None:
    weight = random_weight(30, 20)
    place = FactorStore(tmp_path).path(weight_key(weight)).with_suffix(".tmp")
    place.mkdir(parents=True)
    with pytest.raises(SveError, match="Cannot write to the store.*Is a directory"):
        FactorStore(tmp_path).get(weight, "w")
    assert place.is_dir()


def test_a_root_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SveError, match="SVE_CACHE_DIR"):
        FactorStore(tmp_path / "file").get(random_weight(30, 20), "w")


COMPETITOR = """
import sys, time
from pathlib import Path
import torch
from sve_cli.factors import FactorStore, store

plain = store.decompose_weight
def slow(*arguments):
    time.sleep(1.0)
    return plain(*arguments)
store.decompose_weight = slow
root = Path(sys.argv[1])
weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
(root / f"ready-{sys.argv[2]}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.01)
mine = FactorStore(root)
factors = mine.get(weight, "w")
sys.stdout.write(f"{mine.computed} {mine.hits} {float(factors.s_R.sum())!r}")
"""


def test_two_processes_at_once_decompose_once_and_leave_one_valid_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPETITOR, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}
    processes = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, env=environment) for n in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output[:2] for output in outputs) == [["0", "1"], ["1", "0"]]
    assert outputs[0][2] == outputs[1][2]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    after = FactorStore(tmp_path)
    after.get(torch.randn(30, 20, generator=torch.Generator().manual_seed(0)), "w")
    assert after.hits == 1


def test_the_key_is_a_documented_hash() -> None:
    """A key that changes silently would orphan every store: changing it means a new ALGORITHM version."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    text = f"{decomposition.ALGORITHM} torch.float32 (2, 2) ".encode()
    assert weight_key(weight) == hashlib.sha256(text + weight.numpy().tobytes()).hexdigest()
