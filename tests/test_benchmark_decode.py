"""Tests of benchmarks/decode.py: its pictures, settings, counts and table."""

import io
import sys

import decode
import numpy as np
import PIL.Image

from googlenet_flax.data.decode import decode_image


def test_typical_pictures_are_decoded_and_full_size_is_what_it_says(tmp_path, monkeypatch):
    content = decode.draw_picture(np.random.default_rng(0), 375, 500)
    image = PIL.Image.open(io.BytesIO(content))
    # ImageNet's training pictures have 138 GB / 1.28 million each, and most are 500x375.
    assert image.size == (500, 375) and 100e3 < len(content) < 120e3
    reduced, _ = decode_image(content, 20)
    with decode.decoded_at_full_size():
        full, extent = decode_image(content, 20)
    assert extent == (15, 20)
    assert not np.array_equal(reduced, full)
    expected = image.resize((20, 15), PIL.Image.Resampling.BILINEAR, reducing_gap=2)
    np.testing.assert_array_equal(full[:15], expected)

    short, path = {"seconds": 0.0, "rounds": 2}, tmp_path / "picture.jpg"
    assert [r > 0 for r in decode.measure_core([content], 256, **short)] == [True] * 2
    path.write_bytes(content)
    monkeypatch.setattr(decode, "BATCH_SIZE", 4)
    assert [r > 0 for r in decode.measure_pipeline([path], 0, **short)] == [True] * 2


def test_rates_count_pictures():
    times = iter([0, 1, 2, 2, 10, 11, 14, 14])  # The two rounds take 2 and 4 seconds.
    assert decode.rates(lambda: 6, lambda: next(times), seconds=2, rounds=2) == [6, 3]


def test_the_tables(monkeypatch, capsys):
    monkeypatch.setattr(decode, "SIZES", ((60, 80),))
    monkeypatch.setattr(decode, "measure_core", lambda *_, **__: [90, 100, 110])
    monkeypatch.setattr(decode, "measure_pipeline", lambda *_, **__: [1, 2, 3])
    monkeypatch.setattr(sys, "argv", ["decode.py", "--images_per_second=250"])
    decode.main()
    core, pipeline = capsys.readouterr().out.split("\n\n")
    _, _, *rows = core.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["256 px", "320 px", "not reduced"]
    # 250 images/s need three cores that decode 90 to 110 each.
    assert all(row.endswith("| 90.0 / 100 / 110 | 90.0 / 100 / 110 | 3 |") for row in rows)
    assert "| threads | 1.00 / 2.00 / 3.00 |" in pipeline
