"""Reads pages with the Python client's parsers, family by family.

Usage: check-exposition.py SEED TEXT OPEN_METRICS
       (the seed's page, the page to check in text format 0.0.4, and the same in OpenMetrics)

Every family of the seed must be there with its type, HELP text, label names and buckets; every
histogram must add up; what is counted must be as much as what was measured; and both formats must
say the same, sample by sample.
"""

import collections
import sys

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

CONFIGURED = [
    "fail_ratio",
    "fail_latency_seconds",
    "slow_ratio",
    "latency_seconds",
    "slow_latency_seconds",
    "work_seconds",
]
OUR_OWN = {
    "app_connections_max": "gauge",
    "app_connections_open": "gauge",
    "app_fault_active": "gauge",
    "app_requests_in_flight": "gauge",
} | {f"app_configured_{setting}": "gauge" for setting in CONFIGURED}


def families(path):
    with open(path, encoding="utf-8") as page:
        # The Python client adds the time at which a counter was created; Prometheus has no use for it.
        return {f.name: f for f in text_string_to_metric_families(page.read()) if not f.name.endswith("_created")}


def shape(family):
    """What a query depends on: sample names, label names, buckets, text for text."""
    return {(s.name, *sorted(s.labels), s.labels.get("le")) for s in family.samples}


def histogram(samples):
    """Buckets in order, never falling, the last as much as the count."""
    by_series = collections.defaultdict(dict)
    for sample in samples:
        labels = dict(sample.labels)
        key = float(labels.pop("le")) if "le" in labels else sample.name
        by_series[tuple(sorted(labels.items()))][key] = sample.value
    for labels, series in by_series.items():
        bounds = [key for key in series if isinstance(key, float)]
        counts = [series[bound] for bound in bounds]
        assert bounds == sorted(bounds) and bounds[-1] == float("inf"), (labels, bounds)
        assert counts == sorted(counts), (labels, counts)
        name = samples[0].name.removesuffix("_bucket")
        assert counts[-1] == series[f"{name}_count"], labels
        assert series[f"{name}_sum"] >= 0, labels
    return {labels: series[f"{name}_count"] for labels, series in by_series.items()}


seed, page = families(sys.argv[1]), families(sys.argv[2])
extra = {name: family.type for name, family in page.items() if name not in seed}
assert extra.items() >= OUR_OWN.items() and all(
    name in OUR_OWN or name.startswith("process_") for name in extra
), f"families that the seed has not: {extra}"

for name, expected in seed.items():
    family = page.get(name)
    assert family, f"{name} is missing"
    assert family.type == expected.type, (name, family.type)
    assert family.documentation == expected.documentation, (name, family.documentation)
    assert shape(family) == shape(expected), (name, shape(family) ^ shape(expected))

measured = histogram(page["app_request_latency_seconds"].samples)
counted = collections.Counter()
for sample in page["app_request_count"].samples:
    labels = {name: value for name, value in sample.labels.items() if name != "http_status"}
    counted[tuple(sorted(labels.items()))] += sample.value
assert measured == counted, (measured, counted)

# Without what the scrapes between the two pages have changed, and the clock.
def settled(samples):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for s in samples
        if not s.name.startswith("process_") and s.labels.get("endpoint") != "/metrics"
    }


with open(sys.argv[3], encoding="utf-8") as file:
    # The strict one: families in one piece, order, names by type, "# EOF", exemplars in their buckets.
    other = {family.name: family for family in openmetrics.text_string_to_metric_families(file.read())}
samples = [sample for family in page.values() for sample in family.samples]
other_samples = [sample for family in other.values() for sample in family.samples]
assert settled(samples) == settled(other_samples), set(settled(samples).items()) ^ set(settled(other_samples).items())
assert {(s.name, *sorted(s.labels.items())) for s in samples} == {
    (s.name, *sorted(s.labels.items())) for s in other_samples
}
assert other["app_version"].type == "info", other["app_version"]
traced = [sample for sample in other_samples if sample.exemplar]
assert traced, "no sample has an exemplar"

requests = int(sum(counted.values()))
print(f"ok      the Python client's parser: {len(page)} families like the seed's, {requests} requests add up")
print(f"ok      its OpenMetrics parser: the same {len(samples)} samples, {len(traced)} of them with an exemplar")
