from __future__ import annotations

from dataclasses import replace

import pytest

from sve_cli.render.spectrum import heat_maps, kind_table, layer_table, place, rank_table, sentences
from sve_cli.report import Report, Spectrum, SpectrumLayer


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("encoder.layer.0.attention.self.query", "encoder.layer.0", "attention.self.query"),
        ("blocks.11.mlp.fc1", "blocks.11", "mlp.fc1"),
        ("layer1.0.downsample.0", "layer1.0", "downsample.0"),
        ("layers.2.blocks.1.attn.qkv", "layers.2.blocks.1", "attn.qkv"),
        ("classifier.dense", "", "classifier.dense"),
        ("fc", "", "fc"),
    ],
)
def test_place(name: str, block: str, kind: str) -> None:
    assert place(name) == (block, kind)


def test_maps_and_tables(full_report: Report) -> None:
    found = full_report.spectrum
    assert found is not None
    change, ranks, agreement = (heat for _, _, heat in heat_maps(found))
    assert change.rows == ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert change.columns == [str(i) for i in range(6)] and change.axis == "Block, numbered as in encoder.layer"
    assert change.values[0] == pytest.approx([0.01 + 0.001 * b for b in range(6)]) and (change.pale, change.full) == pytest.approx(
        (0.01, 0.015)
    )
    assert [row[0] for row in ranks.values] == pytest.approx([0.002 * (r + 1) for r in range(10)])
    assert agreement.values[2] == pytest.approx([0.2] * 6) and agreement.texts[2][3] == "intermediate.dense, encoder.layer.3: 0.20"
    assert kind_table(found).rows[0] == ["attention.self.query", "6", "1.25", "0.40"]
    table = rank_table(found)
    assert table is not None and table.rows[0] == ["1 (largest)", "0.20"] and table.rows[-1] == ["10 (smallest)", "2.00"]
    assert layer_table(found, 3).rows[0][0].startswith("encoder.layer.5.") and len(layer_table(found, 3).rows) == 3


def test_sentences(full_report: Report) -> None:
    found = full_report.spectrum
    assert found is not None
    assert sentences(found) == [
        "On average a singular value moved by 1.25 % of itself; the noise at the start alone would be 0.80 %.",
        "Most in encoder.layer.5.attention.self.query (1.50 %), least in encoder.layer.0.attention.self.query (1.00 %).",
        "The largest tenth of a layer's singular values moved by 0.20 %, the smallest by 2.00 %.",
        "Mean cosine between two members' changes: 0.25 (1: the same changes, 0: unrelated ones).",
    ]


def test_one_member_and_one_layer_without_blocks() -> None:
    found = Spectrum(1, 0.0, [SpectrumLayer("fc", 1, 0.02, [0.02], None)])
    assert [name for name, _, _ in heat_maps(found)] == ["Change by layer"] and rank_table(found) is None
    assert sentences(found) == ["On average a singular value moved by 2.00 % of itself."]
    assert heat_maps(replace(found, layers=[])) == []
