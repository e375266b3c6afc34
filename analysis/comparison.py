"""What became faster or slower between two runs of the benchmark."""

from analysis.rows import Row
from analysis.timing import ratio_interval

# What a row of one run shares with its counterpart of the other.
KEY = ("model", "mode", "stage", "batch_size", "image_size", "channels", "dtype", "dataset", "cache")
CONDITIONS = ("device", "device_count", "processor", "cpu_cores", "driver")
CONDITIONS += ("jax_version", "xla_flags", "libtpu_init_args")
RATE = ("images_per_second", "images_per_second_low", "images_per_second_high")


def compare(rows: list[Row], old: list[Row], tolerance: float) -> list[Row]:
    """Returns for each row that the old run has, too, how much faster it became.

    Args:
      rows: of this run.
      old: of the run before.
      tolerance: share of the images a second that may be lost, 0 to 1.

    Returns:
      Rows of KEY's columns, images_per_second_old and images_per_second, their ratio, its interval of 95 %, ratio_low
      and ratio_high (None where a rate has none), and the verdict: slower (past the tolerance, and the interval does
      not hold 1), unclear (past the tolerance, but the interval holds 1 or there is none), faster (above 1, as is the
      interval), same; or failed: what could be measured can be no more.
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
                _, low, high = ratio_interval(*([each[name] for name in RATE] for each in (row, earlier)))
            certain = low is not None and not low <= 1 <= high
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
    """Returns in words what of hardware, JAX and its flags two runs do not share: the ratios are of these, too."""
    values = {name: [sorted({str(row.get(name)) for row in run}) for run in (old, rows)] for name in CONDITIONS}
    return [f"{name}: {', '.join(now)}, was {', '.join(then)}" for name, (then, now) in values.items() if now != then]


def _key(row: Row) -> tuple:
    """Of a row; the loader's own speed is of no network."""
    return tuple(row.get(name) for name in KEY if (name, row["mode"]) != ("model", "input"))
