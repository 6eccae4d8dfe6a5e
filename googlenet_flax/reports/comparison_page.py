"""Page that compares several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from googlenet_flax.reports.curves import comparison_figure
from googlenet_flax.reports.page import Cell, Number, Page, number, percent
from googlenet_flax.reports.record import RunRecord, best_name
from googlenet_flax.reports.run_page import duration


def create_comparison_page(records: Sequence[RunRecord]) -> Page:
    """Creates the page that compares several runs, finished or not."""
    names = distinct_names(records)
    page = Page(f"{len(records)} runs compared")
    page.table(
        [
            *("run", "steps", "best accuracy", "at step", "last accuracy", "last loss"),
            *("images/s", "time"),
        ],
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
    configs = [record.config.to_dict() if record.config else {} for record in records]
    differences = config_differences(configs)
    if differences:
        page.table(
            ["field", *names],
            [[field, *values] for field, values in differences.items()],
            caption="Where the configs differ",
        )
    else:
        page.text("The runs have the same config.")
    page.table(
        ["run", "workdir"],
        [[name, str(record.path)] for name, record in zip(names, records, strict=True)],
        caption="Workdirs",
    )
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


def distinct_names(records: Sequence[RunRecord]) -> list[str]:
    """Returns the names of the runs' folders, or the paths if two names are the same."""
    names = [record.name for record in records]
    are_distinct = len(set(names)) == len(names)
    return names if are_distinct else [str(record.path) for record in records]


def config_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Cell]]:
    """Returns the fields that differ, with a value for each config; None if absent."""
    fields = sorted({name for config in configs for name in config})
    values: dict[str, list[Cell]] = {
        name: [repr(config[name]) if name in config else None for config in configs]
        for name in fields
    }
    return {name: each for name, each in values.items() if len(set(each)) > 1}
