"""A strict reader of what /metrics says to Prometheus, with the checks that promtool makes."""

import re

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

LINE = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\]|\\.)*",?)*\})? [-+0-9.eInfNa]+')
UNITS = ("_seconds", "_bytes", "_total", "_info", "_share", "_chunks", "_workers", "_letters")


def read_metrics(text: str) -> dict[str, Metric]:
    """Families by name; fails where the text breaks a rule."""
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family comes twice"
    for family in families:
        assert family.documentation and family.type != "unknown", family.name
        check_samples(family)
        if family.type == "histogram":
            check_histogram(family)
    return {family.name: family for family in families}


def check_samples(family: Metric) -> None:
    seen = {(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples}
    assert len(seen) == len(family.samples), f"{family.name}: a series comes twice"
    for sample in family.samples:
        assert sample.name.startswith(family.name), sample
        base = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert base.endswith(UNITS), f"{sample.name}: no unit"
        assert sample.value >= 0, sample


def check_histogram(family: Metric) -> None:
    """Per set of labels: bounds rise, counts rise, +Inf is there and equals the count."""
    series: dict[tuple, dict] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        one = series.setdefault(tuple(sorted(labels.items())), {"buckets": []})
        part = sample.name.removeprefix(family.name)
        if part == "_bucket":
            one["buckets"].append((float(sample.labels["le"]), sample.value))
        else:
            assert part in ("_sum", "_count"), sample
            one[part] = sample.value
    for one in series.values():
        bounds = [bound for bound, _ in one["buckets"]]
        counts = [count for _, count in one["buckets"]]
        assert bounds == sorted(set(bounds)) and bounds[-1] == float("inf")
        assert counts == sorted(counts), family.name
        assert one["_count"] == counts[-1]
        least = sum(
            low * (count - before)
            for (low, _), count, before in zip(
                [(0.0, 0), *one["buckets"]], counts, [0, *counts], strict=False
            )
        )
        assert one["_sum"] >= least - 1e-6, f"{family.name}: less than its buckets hold"


def value(families: dict[str, Metric], series: str, **labels: str) -> float:
    """One sample, by its full name and the labels it must have."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == series and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, f"{series} {labels}: {len(found)} samples"
    return found[0]
