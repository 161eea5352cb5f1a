-- Makes wrk print its result as one line of JSON for bench/run.py and bench/compare.py.
done = function(summary, latency)
    io.write(string.format(
        '{"requests": %d, "seconds": %f, "p99": %f, "p99.9": %f, "failed": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e6, latency:percentile(99.9) / 1e6,
        summary.errors.connect, summary.errors.read, summary.errors.write,
        summary.errors.status, summary.errors.timeout))
end
