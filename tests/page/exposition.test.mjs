// Tests src/page/exposition.js: parses expositions in the text format, and compares rates and quantiles with
// those that Prometheus computes from the same samples. Usage: node --test tests/page        (needs
// prometheus and promtool; with BASE_URL also a live scrape)
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
const source = read("../../src/page/exposition.js");
const { parse, parseKey, rise, rate, quantile } = Function(`${source}; return { parse, parseKey, rise, rate, quantile }`)();

// Repeatable: a linear congruential generator (Numerical Recipes).
let seed = 1;
const random = (below) => (seed = (seed * 1664525 + 1013904223) % 2 ** 32) % below;

// Every line other than a comment is a sample, and no part of it is lost.
function isParsed(exposition) {
    const lines = exposition.split("\n").filter((line) => line && !line.startsWith("#"));
    const { samples, TYPE, HELP } = parse(exposition);
    assert.deepEqual([...samples.keys()], lines.map((line) => line.slice(0, line.lastIndexOf(" "))));
    assert.deepEqual([...samples.values()], lines.map((line) => Number(line.slice(line.lastIndexOf(" ")))));
    const comments = [...exposition.matchAll(/^# (TYPE|HELP) (\S+) (.*)$/gm)];
    assert.ok(comments.length > 0 && samples.size > 0);
    for (const [, kind, name, rest] of comments) {
        assert.equal({ TYPE, HELP }[kind].get(name), rest);
    }
}

test("the exposition of the seed's application is parsed", () => isParsed(read("../service/seed-metrics.txt")));

test("a live scrape is parsed", { skip: !process.env.BASE_URL }, async () => {
    const exposition = await (await fetch(`${process.env.BASE_URL}/metrics`)).text();
    isParsed(exposition);
    const { samples, TYPE } = parse(exposition);
    assert.equal(samples.get("app_version_info{config=\"develop\",version=\"1\"}"), 1);
    assert.equal(TYPE.get("app_request_latency_seconds"), "histogram");
});

test("whatever the text format allows is parsed", () => {
    const { samples } = parse(`
# a comment
#TYPE none here
a 1
a_b:c{x="}\\"\\\\",y=" {"}  +Inf 1395066363000
b{le="0.1"} 7 # {trace_id="x"} 0.05 1.5
c\tNaN
d{} -1.5e-3
e -Inf
`);
    assert.deepEqual([...samples], [
        ["a", 1],
        ['a_b:c{x="}\\"\\\\",y=" {"}', Infinity],
        ['b{le="0.1"}', 7],
        ["c", NaN],
        ["d{}", -0.0015],
        ["e", -Infinity],
    ]);
    assert.deepEqual(parseKey('a_b{x="}\\"\\\\\\n",y="le=\'1\'"}'), {
        key: 'a_b{x="}\\"\\\\\\n",y="le=\'1\'"}',
        name: "a_b",
        $x: '}\\"\\\\\\n',
        $y: "le='1'",
    });
    assert.deepEqual(parseKey("a"), { key: "a", name: "a" });
});

test("a counter that is lower than before has started again", () => {
    assert.equal(rise(3, 5), 2);
    assert.equal(rise(5, 3), 3);
    assert.equal(rise(5, 5), 0);
});

test("rate and quantile are Prometheus'", async (context) => {
    const folder = mkdtempSync(join(tmpdir(), "tiny-probe-page-"));
    context.after(() => rmSync(folder, { recursive: true, force: true }));
    // Times are relative to this one, because a large number has fewer digits for fractions of a
    // second.
    const end = 1_700_000_000;
    const lines = [];

    // Counters with resets, scraped at irregular times during a part of the minute. No sample is at the
    // start of a range, because Prometheus 2 includes such a sample and Prometheus 3 does not.
    lines.push("# TYPE c counter");
    const counters = Array.from({ length: 300 }, (_, id) => {
        // With a small first value, Prometheus 2 and 3 extrapolate differently to the start of the
        // range.
        let value = id % 3 ? 1_000_000 : 0;
        const step = [1, 1, 5, 15][id % 4];
        const points = [];
        const from = random(40) - 60;
        for (let time = from + 0.3; time < (id % 7 ? 0 : -10); time += step + random(200) / 1000) {
            points.push([Math.round(time * 1000) / 1000, value]);
            value = random(10) ? value + random(5) : random(3);
        }
        for (const [time, count] of points) {
            lines.push(`c_total{id="${id}"} ${count} ${(end + time).toFixed(3)}`);
        }
        return points;
    });

    // Histograms at one time. Many are empty or have empty buckets.
    lines.push("# TYPE h gauge");
    const bounds = [0.005, 0.01, 0.25, 1, 10, Infinity];
    const histograms = Array.from({ length: 300 }, (_, id) => {
        let count = 0;
        return bounds.map((bound) => {
            count += random(3) ? 0 : random(id % 5 ? 20 : 2);
            lines.push(`h{id="${id}",le="${bound === Infinity ? "+Inf" : bound}"} ${count} ${end - 1}`);
            return [bound, count];
        });
    });
    writeFileSync(join(folder, "samples"), `${lines.join("\n")}\n# EOF\n`);
    writeFileSync(join(folder, "prometheus.yml"), "");
    execFileSync("promtool", ["tsdb", "create-blocks-from", "openmetrics", join(folder, "samples"), join(folder, "data")]);

    const prometheus = spawn("prometheus", [
        `--config.file=${join(folder, "prometheus.yml")}`, `--storage.tsdb.path=${join(folder, "data")}`,
        "--storage.tsdb.retention.time=99y", "--web.listen-address=127.0.0.1:0",
    ], { stdio: ["ignore", "ignore", "pipe"] });
    context.after(async () => {
        prometheus.kill();
        await once(prometheus, "exit");
    });
    let log = "";
    prometheus.stderr.setEncoding("utf8");
    for await (const text of prometheus.stderr.iterator({ destroyOnReturn: false })) {
        log += text;
        if (log.includes("Server is ready")) break;
    }
    prometheus.stderr.resume();
    const address = /Listening on.*address=(127[\d.:]+)/.exec(log)?.[1];
    assert.ok(address, log);
    const query = async (expression) => {
        const parameters = new URLSearchParams({ query: expression, time: end });
        const { data } = await (await fetch(`http://${address}/api/v1/query?${parameters}`)).json();
        return new Map(data.result.map(({ metric, value }) => [Number(metric.id), Number(value[1])]));
    };
    const isClose = (ours, theirs, what) => {
        const same = Object.is(ours, theirs) || Math.abs(ours - theirs) <= Math.abs(theirs) * 1e-9;
        assert.ok(same, `${what}: ${ours} is not ${theirs}`);
    };

    let compared = 0;
    for (const range of [10, 30, 60, 90]) {
        const theirs = await query(`rate(c_total[${range}s])`);
        counters.forEach((points, id) => {
            const here = points.filter(([time]) => time > -range);
            isClose(rate(here, -range, 0), theirs.get(id) ?? NaN, `rate of ${id} over ${range} s`);
            compared += theirs.has(id) ? 1 : 0;
        });
    }
    assert.ok(compared > 500, `${compared} rates`);
    for (const q of [0.5, 0.9, 0.99]) {
        const theirs = await query(`histogram_quantile(${q}, h)`);
        assert.equal(theirs.size, histograms.length);
        histograms.forEach((buckets, id) => {
            isClose(quantile(q, buckets).value, theirs.get(id), `${q} of ${JSON.stringify(buckets)}`);
        });
    }
    assert.ok(histograms.some((buckets) => Number.isNaN(quantile(0.5, buckets).value)));
});

test("a quantile has its bucket and its position in it", () => {
    const buckets = [[0.1, 10], [0.5, 30], [Infinity, 40]];
    assert.deepEqual(quantile(0.5, buckets), { value: 0.30000000000000004, index: 1, fraction: 0.5 });
    assert.deepEqual(quantile(0.99, buckets), { value: 0.5, index: 2, fraction: 0 });
    assert.deepEqual(quantile(0.5, []), { value: NaN });
});
