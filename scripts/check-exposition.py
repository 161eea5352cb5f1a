"""Checks expositions with the Python client's parsers.

Usage: check-exposition.py SEED TEXT OPEN_METRICS
       (the seed application's exposition, the one to check in text format 0.0.4, and the same in OpenMetrics)

Every family of the seed must exist with its type, HELP text, label names and buckets. Every histogram must
be consistent. The histogram and the counter must have recorded the same number of requests. Both formats
must have the same samples.
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
# The families that the seed does not have, apart from process_*.
ADDED = {
    "app_connections_max": "gauge",
    "app_connections_open": "gauge",
    "app_fault_active": "gauge",
    "app_requests_in_flight": "gauge",
} | {f"app_configured_{setting}": "gauge" for setting in CONFIGURED}


def families(path):
    with open(path, encoding="utf-8") as file:
        # The Python client exposes the creation time of each counter, which Prometheus does not use.
        return {f.name: f for f in text_string_to_metric_families(file.read()) if not f.name.endswith("_created")}


def shape(family):
    """Returns everything that a query can depend on: sample names, label names, and the bounds as text."""
    return {(s.name, *sorted(s.labels), s.labels.get("le")) for s in family.samples}


def histogram(samples):
    """Checks that the buckets are in order and cumulative and that the last one equals the count. Returns
    the count of each series."""
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


seed, exposition = families(sys.argv[1]), families(sys.argv[2])
extra = {name: family.type for name, family in exposition.items() if name not in seed}
assert extra.items() >= ADDED.items() and all(
    name in ADDED or name.startswith("process_") for name in extra
), f"unexpected or missing families, apart from the seed's: {extra}"

for name, expected in seed.items():
    family = exposition.get(name)
    assert family, f"{name} is missing"
    assert family.type == expected.type, (name, family.type)
    assert family.documentation == expected.documentation, (name, family.documentation)
    assert shape(family) == shape(expected), (name, shape(family) ^ shape(expected))

measured = histogram(exposition["app_request_latency_seconds"].samples)
counted = collections.Counter()
for sample in exposition["app_request_count"].samples:
    labels = {name: value for name, value in sample.labels.items() if name != "http_status"}
    counted[tuple(sorted(labels.items()))] += sample.value
assert measured == counted, (measured, counted)

# Leaves out the samples that differ because the expositions were scraped one after the other.
def settled(samples):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for s in samples
        if not s.name.startswith("process_") and s.labels.get("endpoint") != "/metrics"
    }


with open(sys.argv[3], encoding="utf-8") as file:
    # This parser is strict: it checks that families are not interleaved, their order, the suffixes of the
    # names, "# EOF", and that exemplars are within their buckets.
    other = {family.name: family for family in openmetrics.text_string_to_metric_families(file.read())}
samples = [sample for family in exposition.values() for sample in family.samples]
other_samples = [sample for family in other.values() for sample in family.samples]
assert settled(samples) == settled(other_samples), set(settled(samples).items()) ^ set(settled(other_samples).items())
assert {(s.name, *sorted(s.labels.items())) for s in samples} == {
    (s.name, *sorted(s.labels.items())) for s in other_samples
}
assert other["app_version"].type == "info", other["app_version"]
traced = [sample for sample in other_samples if sample.exemplar]
assert traced, "no sample has an exemplar"

requests = int(sum(counted.values()))
print(f"ok      text format: {len(exposition)} families conform to the seed, {requests} requests are consistent")
print(f"ok      OpenMetrics: the same {len(samples)} samples, {len(traced)} of them with an exemplar")
