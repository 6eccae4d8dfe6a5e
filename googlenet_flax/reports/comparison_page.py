"""Page that compares several runs."""

from collections.abc import Sequence

import numpy as np

from googlenet_flax.reports.curves import comparison_figure
from googlenet_flax.reports.page import Cell, Number, Page, number, percent
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import duration
from googlenet_flax.runs.checkpoint import best_name

HEADER = (
    *("run", "steps", "best accuracy", "at step", "last accuracy", "last loss"),
    *("images/s", "time"),
)


def create_comparison_page(records: Sequence[RunRecord]) -> Page:
    """Creates the page that compares several runs, finished or not."""
    names = [record.name for record in records]
    paths = [str(record.path) for record in records]
    if len(set(names)) < len(names):
        names = paths
    page = Page(f"{len(records)} runs compared")
    page.table(
        HEADER,
        [[name, *_summary(record)] for name, record in zip(names, records, strict=True)],
        caption="Evaluations of the main classifier, with averaged weights where a run "
        "averages them; images/s is the median of training",
    )
    if any(record.evaluations for record in records):
        for metric, label, title in (
            ("accuracy", "accuracy (%)", "Accuracy"),
            ("main_loss", "cross-entropy (nats)", "Loss"),
        ):
            page.figure(
                f"comparison_{metric}",
                comparison_figure(records, names, metric, label),
                caption=f"{title} of the main classifier in the evaluations of each run.",
                alt=f"{title} over training time; one line for each of {', '.join(names)}.",
            )
    else:
        page.missing("No run has been evaluated yet, so there are no curves.")
    if differences := _config_differences(records):
        page.table(["field", *names], differences, caption="Where the configs differ")
    else:
        page.text("The runs have the same config. Their code may differ.")
    rows = list(zip(names, paths, strict=True))
    page.table(["run", "workdir"], rows, caption="Workdirs")
    return page


def _summary(record: RunRecord) -> list[Cell]:
    best, evaluations = record.best, record.evaluations
    last = evaluations[-1] if evaluations else {}
    _, rates = record.series("train", "images_per_second")
    of = f" of {record.total_steps:,}" if record.total_steps else ""
    return [
        Number(f"{record.steps:,}{of}"),
        percent(best[best_name(best)]) if best else None,
        number(best["step"]) if best else None,
        percent(last[best_name(last)]) if last else None,
        number(last.get("averaged_main_loss", last.get("main_loss")), ".4f"),
        number(float(np.median(rates)), ",.1f") if len(rates) else None,
        Number(duration(sum(record.session_seconds))) if record.session_seconds else None,
    ]


def _config_differences(records: Sequence[RunRecord]) -> list[list[Cell]]:
    """Returns a row for each field that differs: its name, and its value in each run."""
    configs = [record.config.to_dict() if record.config else {} for record in records]
    fields = sorted({name for config in configs for name in config})
    rows: list[list[Cell]] = [
        [name, *(repr(config[name]) if name in config else None for config in configs)]
        for name in fields
    ]
    return [row for row in rows if len(set(row[1:])) > 1]
