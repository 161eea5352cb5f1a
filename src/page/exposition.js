// Reads the text format, and computes what Prometheus would. The tests load this file alone.
const number = text => Number(text.replace('Inf', 'Infinity'));

// The samples by name and labels as they are written; type and help text by family.
function parse(text) {
  const samples = new Map();
  const families = { TYPE: new Map(), HELP: new Map() };
  for (const line of text.split('\n')) {
    const sample = /^([\w:]+(?:{(?:[^"}]|"(?:[^"\\]|\\.)*")*})?)[ \t]+(\S+)/.exec(line);
    const comment = /^# +(TYPE|HELP) +(\S+) ?(.*)/.exec(line);
    if (sample) samples.set(sample[1], number(sample[2]));
    if (comment) families[comment[1]].set(comment[2], comment[3]);
  }
  return { samples, ...families };
}

// The name of a sample, and its labels with a $ before their names. Values stay as they are written.
function parseKey(key) {
  const series = { key, name: key.split('{')[0] };
  for (const [, label, value] of key.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) series['$' + label] = value;
  return series;
}

const sum = values => values.reduce((a, b) => a + b, 0);

// How far a counter rose between two values. If the second is lower, it started again at 0.
const rise = (before, after) => (after < before ? after : after - before);

// rate() of points [seconds, value] in the range from..to. Where Prometheus has no result, NaN.
function rate(points, from, to) {
  const [first, last] = [points[0], points.at(-1)];
  if (points.length < 2) return NaN;
  const increase = sum(points.slice(1).map(([, value], index) => rise(points[index][1], value)));
  // A gap between the points and an end of the range counts if it is about one interval, otherwise
  // as half an interval, and never as more than it took the counter to rise from 0.
  const time = last[0] - first[0];
  const interval = time / (points.length - 1);
  const extent = gap => (gap < interval * 1.1 ? gap : interval / 2);
  let start = extent(first[0] - from);
  if (increase > 0) start = Math.min(start, (time * first[1]) / increase);
  return (increase * (start + time + extent(to - last[0]))) / time / (to - from);
}

// histogram_quantile() of buckets [bound, cumulative count], the last of which is +Inf. For the
// bars also the bucket that it is in, and at what fraction of it.
function quantile(q, buckets) {
  const last = buckets.length - 1;
  const rank = q * buckets[last]?.[1];
  if (!(rank > 0)) return { value: NaN };
  const index = buckets.findIndex(([, count]) => count >= rank);
  const [lower, below] = buckets[index - 1] ?? [0, 0];
  const [upper, count] = buckets[index];
  // The last bucket has no upper bound.
  const fraction = index < last ? (rank - below) / (count - below) : 0;
  return { value: lower + (fraction && (upper - lower) * fraction), index, fraction };
}
