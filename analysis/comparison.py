"""Compares two runs of the benchmark: which networks became faster or slower."""

from analysis.rows import Row
from analysis.timing import ratio_interval

# The columns that a row has in common with its counterpart of the other run.
KEY = ("model", "mode", "stage", "batch_size", "image_size", "channels", "dtype", "dataset", "cache")
CONDITIONS = ("device", "device_count", "processor", "cpu_cores", "driver", "jax_version", "xla_flags")
CONDITIONS = (*CONDITIONS, "libtpu_init_args")
RATE = ("images_per_second", "images_per_second_low", "images_per_second_high")


def compare(rows: list[Row], old: list[Row], tolerance: float) -> list[Row]:
    """Returns how much faster or slower each row became, for the rows that the old run has too.

    Args:
      rows: of this run.
      old: of the run before.
      tolerance: share of the images per second that may be lost, 0 to 1.

    Returns:
      Rows of KEY's columns, images_per_second_old and images_per_second, their ratio, its 95 % interval, ratio_low and
      ratio_high (None if a rate has no interval), and the verdict:
      - slower: the loss exceeds the tolerance, and the interval does not include 1;
      - unclear: the loss exceeds the tolerance, but the interval includes 1, or there is none;
      - faster: the ratio and its whole interval are above 1;
      - failed: the old run measured it, and this one could not;
      - same: all others.
    """
    before = {_key(row): row for row in old if row["status"] == "ok"}
    results = []
    for row in rows:
        if _key(row) not in before:
            continue
        earlier, ratio, low, high, verdict = before[_key(row)], None, None, None, "failed"
        if row["status"] == "ok":
            ratio = row[RATE[0]] / earlier[RATE[0]]
            if all(each.get(name) for each in (row, earlier) for name in RATE):
                new_rate, old_rate = (tuple(each[name] for name in RATE) for each in (row, earlier))
                _, low, high = ratio_interval(new_rate, old_rate)
            certain = low is not None and high is not None and not low <= 1 <= high
            if ratio < 1 - tolerance:
                verdict = "slower" if certain else "unclear"
            else:
                verdict = "faster" if ratio > 1 and certain else "same"
        results.append(
            {name: row.get(name) for name in KEY}
            | {"images_per_second_old": earlier[RATE[0]], "images_per_second": row.get(RATE[0])}
            | {"ratio": ratio, "ratio_low": low, "ratio_high": high, "verdict": verdict}
        )
    return results


def differing_conditions(rows: list[Row], old: list[Row]) -> list[str]:
    """Returns in words how hardware, JAX and its flags differ between two runs, because that changes the ratios too."""
    values = {name: [sorted({str(row.get(name)) for row in run}) for run in (old, rows)] for name in CONDITIONS}
    return [f"{name}: {', '.join(now)}, was {', '.join(then)}" for name, (then, now) in values.items() if now != then]


def _key(row: Row) -> tuple:
    """The values of KEY; input rows do not depend on the model."""
    return tuple(row.get(name) for name in KEY if (name, row["mode"]) != ("model", "input"))
