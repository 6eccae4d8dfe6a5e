import re
import sys

import pytest
import scaling
from helpers.paths import REPOSITORY

LINK = {"step_seconds": 0.05, "bytes_per_second": 5e10, "latency_seconds": 1e-5}


def test_what_the_originals_exchange():
    """Compares the bytes with the numbers of parameters and statistics of the originals."""
    paper = scaling.exchange_of("paper", 1000, 224)
    assert paper == scaling.Exchange(4 * 13_378_280, norm_bytes=0, norm_exchanges=0)
    torchvision = scaling.exchange_of("torchvision", 1000, 224)
    assert torchvision.gradient_bytes == 4 * 13_004_888
    assert torchvision.norm_bytes == 4 * 4 * 15_072 // 2
    assert torchvision.norm_exchanges == 42  # As in a program for 256 TPUs.


def test_efficiency_by_hand():
    exchange = scaling.Exchange(50_000_000, norm_bytes=1000, norm_exchanges=6)
    shares = [scaling.efficiency(count, exchange, **LINK) for count in scaling.DEVICES]
    # 8 devices send 2 x 7/8 of 50 MB and of 1 kB in 7 all-reduces of 2 x 3 hops.
    lost = (87_500_000 + 1_750) / 5e10 + 7 * 2 * 3 * 1e-5
    assert shares[scaling.DEVICES.index(8)] == pytest.approx(0.05 / (0.05 + lost))
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("speed", "columns"), [("50", (1, 2)), ("12.5", (3, 4))])
def test_the_table_of_the_docs_is_what_the_command_prints(
    monkeypatch, capsys, speed, columns
):
    monkeypatch.setattr(sys, "argv", ["scaling.py", f"--gigabytes_per_second={speed}"])
    scaling.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    printed = [re.findall(r"[\d,]+", line) for line in lines if line.startswith("| ")]
    docs = (REPOSITORY / "docs" / "scaling.md").read_text().splitlines()
    rows = [re.findall(r"[\d,]+", line) for line in docs if re.match(r"\| [\d,]+ \|", line)]
    for (count, seed, paper, bn, torchvision), row in zip(printed, rows, strict=True):
        assert [row[0], row[columns[0]], row[columns[1]]] == [count, seed, bn]
        assert paper == seed and abs(int(torchvision) - int(bn)) <= 1
