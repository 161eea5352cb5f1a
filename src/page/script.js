
// What the page does. Text from the service becomes text nodes, never markup.
const $ = {};
for (const element of document.querySelectorAll('[id]')) $[element.id] = element;
const now = () => Date.now() / 1000;
const digits = value => value.toLocaleString('en', { maximumSignificantDigits: 3 });
const seconds = value => (value < 1 ? digits(value * 1000) + ' ms' : digits(value) + ' s');

// A response and its text, or an error after 10 s.
async function ask(path, options) {
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(1e4), ...options });
  return [response, await response.text()];
}

// An element: its tag and, after a dot, its class.
function el(tag, ...children) {
  const [name, className = ''] = tag.split('.');
  const element = Object.assign(document.createElement(name), { className });
  element.append(...children);
  return element;
}

// Code that breaks where its parts end.
const code = text => el('code', ...text.split(/(?<=[{(,])/).flatMap(part => [part, el('wbr')]));

// Sets the text of an element only if it differs. Otherwise a screen reader would read it aloud again.
function say(element, text, className = element.className) {
  if (element.textContent != text) Object.assign(element, { textContent: text, className });
}

// Copies the element after it. The newer clipboard needs HTTPS.
function copyButton() {
  const button = el('button.copy', 'Copy');
  button.onclick = () => {
    getSelection().selectAllChildren(button.nextSibling);
    document.execCommand('copy');
    return false;
  };
  return button;
}

// Ask. A browser opens six connections to a host. These requests use at most four of them, so that two
// are free for the scrapes and the settings.
const open = new Set();
let queued = 0, steady = 0;

async function send() {
  const stop = new AbortController();
  const start = now();
  const query = new URLSearchParams([...new FormData($.own)].filter(([, value]) => value));
  const path = `/probe?${query}`.replace(/\?$/, '');
  let status = 'none', text = 'Refused, reset or closed.';
  open.add(stop);
  try {
    [{ status }, text] = await ask(path, { signal: stop.signal });
  } catch {
    if (stop.signal.aborted) text = 'Not waited for.';
  }
  open.delete(stop);
  const time = seconds(now() - start);
  $.log.prepend(el('li', code('GET ' + path), el('span', time), el(status < 400 ? 'b.ok' : 'b.bad', status), el('p', text)));
  $.log.children[5]?.remove();
  if (!steady) say($.said, `Status ${status} after ${time}.`);
  pump();
}

function pump(more = 0) {
  queued += more;
  for (; queued && open.size < 4; queued--) send();
  const waiting = queued + open.size;
  if (waiting && !steady) say($.said, `Waiting for ${waiting}.`);
}

function tick() {
  steady = setTimeout(tick, 1000 / ($.rate.value || 1));
  pump(open.size < 4 ? 1 : 0);
}

$.ten.onclick = () => pump(10);
$.own.onsubmit = () => {
  pump(1);
  return false;
};
$.stop.onclick = () => {
  queued = 0;
  for (const stop of open) stop.abort();
};
$.steady.onclick = () => {
  clearTimeout(steady);
  if (steady) steady = 0;
  else tick();
  say($.steady, steady ? 'Stop sending' : 'Send steadily');
  say($.said, steady ? 'At most four at a time.' : '');
};

// See. Every process that answers has a history of its own, as every target of Prometheus has. Its
// start time identifies it.
const targets = new Map();
let shown, busy, timer, mixed = 0;

async function scrape() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  const time = now();
  const late = setTimeout(say, 2000, $.state, 'No response yet: overloaded or frozen?', '');
  try {
    const [{ ok, status, headers }, text] = await ask('/metrics');
    const exposition = parse(text);
    if (!ok || !exposition.samples.size) throw { message: `status ${status}, no metrics` };
    take(exposition, time, Date.parse(headers.get('Date')) / 1000);
  } catch ({ message }) {
    say($.state, `Scrape failed: ${message}. In Prometheus, up is 0.`, 'bad');
  }
  clearTimeout(late);
  busy = false;
  timer = setTimeout(scrape, 1000 * (time + 1 - now()));
}

function take(exposition, time, date) {
  const start = exposition.samples.get('process_start_time_seconds') ?? 0;
  let target = targets.get(start);
  if (!target) {
    // A process that started after the last scrape is the same target, restarted. Any other one is another target.
    const restart = shown && !mixed && start > shown.date - 1 ? time : 0;
    target = { ...(restart ? shown : { points: [] }), restart, host: '…' };
    if (restart) targets.clear();
    if (restart || !shown) shown = target;
    targets.set(start, target);
    learn(start);
  }
  const before = target.samples;
  const samples = new Map([...exposition.samples].filter(([key]) => /^(app_request_|process_cpu)/.test(key)));
  const points = [...target.points.filter(point => point.time > time - 60), { time, samples }];
  Object.assign(target, exposition, { date, points });
  if (target !== shown) mixed = time;
  // If no scrape has reached the shown process for 10 s, show this one.
  if (time - shown.points.at(-1).time > 10) shown = target;
  say($.host, shown.host);
  const hosts = [...targets.values()].map(({ host }) => host).join(', ');
  if (mixed > time - 60) say($.state, `Several processes answer: ${hosts}. You see ${shown.host}; requests reach any.`, '');
  else if (shown.restart > time - 60) say($.state, 'Restarted: counters began again at 0. rate() allows for that.', '');
  else say($.state, 'Live: scraped once a second.', 'ok');
  if (target === shown) draw(before);
}

// Reads the host's name and the targets from the web page. Behind a load balancer, another process may serve it.
async function learn(start) {
  let data = document.body.dataset;
  if (data.start != start) {
    const [, text] = await ask('/').catch(() => []);
    data = new DOMParser().parseFromString(text, 'text/html').body.dataset;
  }
  const target = targets.get(+data.start);
  if (target) Object.assign(target, data);
  if (target === shown) load();
  if (targets.get(start)?.host === '…') setTimeout(learn, 3000, start);
}

const COUNT = 'app_request_count_total';
const TIME = 'app_request_latency_seconds';
// The meaning of the lines whose help text does not explain them.
const MEANING = {
  [COUNT]: 'Requests so far with these labels.',
  [TIME + '_sum']: 'Their total time in seconds. Divided by the count: the mean.',
  [TIME + '_count']: 'Requests so far.',
};

function changedLines({ samples, TYPE, HELP }, before, bounds) {
  const groups = new Map();
  for (const [key, value] of samples) {
    const old = before.get(key);
    if (old === value) continue;
    // The buckets of a histogram are one row, and so are the series of app_extra, of which there may be thousands.
    const id = key.replace(/,le=.*|^(app_extra).*/, '$1');
    if (!groups.has(id)) groups.set(id, []);
    groups.get(id).push({ ...parseKey(key), value, old });
  }
  return [...groups.values()].map(lines => {
    const { length, 0: first, [length - 1]: last } = lines;
    const { key, name, value, old = 0, $le } = first;
    const family = TYPE.has(name) ? name : name.replace(/_[a-z]+$/, '');
    const gauge = TYPE.get(family) === 'gauge';
    const by = gauge ? value - old : rise(old, value);
    const most = gauge ? by : rise(last.old ?? 0, last.value);
    let text = MEANING[name] ?? HELP.get(family);
    if ($le) {
      text = `Took more than ${bounds[bounds.indexOf($le) - 1] ?? 0} s and at most ${$le} s, so this bucket and all larger ones count it.`;
      if (most > by) text = 'Each request counts in the bucket of its time and all larger ones.';
    }
    return el(
      /^(process_|app_conn)|endpoint=".(metrics|faults)?"/.test(key) ? 'li.own' : 'li',
      code(length > 1 ? key + ' …' : key),
      el('span', length > 1 ? length + ' lines' : `${digits(old)} → ${digits(value)}`),
      el('b', (by > 0 ? '+' : '') + digits(by) + (most > by ? '…' + digits(most) : '')),
      el('p', `${gauge ? 'Gauge' : $le ? 'Bucket' : 'Counter'}. ${text}`),
    );
  });
}

// The numbers: a list, a label, the PromQL, and how the page computes the same.
const AT = '{endpoint="/probe"}';
const NUMBERS = [
  ...[0.5, 0.9, 0.99].map(q => ['times', 'p' + q * 100, `histogram_quantile(${q}, sum by (le) (rate(${TIME}_bucket${AT}[1m])))`, ({ histogram }) => quantile(q, histogram).value, seconds]),
  ['rates', 'Requests per second', `sum by (http_status) (rate(${COUNT}${AT}[1m]))`, ({ total }) => total(), (_, { total, statuses }) => statuses.filter(total).map(status => `${digits(total(status))} with ${status}`).join('\n') || 0],
  ['rates', 'Error ratio', `sum(rate(${COUNT}{endpoint="/probe",http_status=~"5.."}[1m])) / sum(rate(${COUNT}${AT}[1m]))`, ({ total }) => total('5') / total(), value => digits(value * 100) + '%'],
  ['costs', 'Requests in flight', 'app_requests_in_flight'],
  ['costs', 'Open connections', 'app_connections_open'],
  ['costs', 'CPU cores busy', 'rate(process_cpu_seconds_total[1m])', ({ cpu }) => cpu],
  ['costs', 'Memory', 'process_resident_memory_bytes', , value => digits(value / 1e6) + ' MB'],
].map(([list, label, promql, compute = ({ samples }) => samples.get(promql), write = digits]) => {
  const value = el('b');
  $[list].append(el('li', el('span', label), value, copyButton(), code(promql)));
  return { value, compute, write };
});

function draw(before) {
  const { samples, points } = shown;
  const { time: to, samples: latest } = points.at(-1);
  const from = points[0].time;
  const series = [...latest].map(([key, value]) => {
    const has = points.filter(({ samples }) => samples.has(key));
    return { ...parseKey(key), value, rate: rate(has.map(({ time, samples }) => [time, samples.get(key)]), from, to) };
  });
  const values = (some, label) => [...new Set(some.map(one => one[label]))].filter(Boolean);
  const bounds = values(series, '$le');
  if (before) {
    const rows = changedLines(shown, before, bounds);
    const own = rows.filter(row => row.className);
    const asked = rows.filter(row => !row.className);
    $.own_changes.replaceChildren(...own);
    if (asked[0]) {
      $.changes.replaceChildren(...asked);
      say($.when, `At ${new Date(to * 1000).toLocaleTimeString()}:`);
    }
    if (asked.some(row => /^app_(conf|fault)/.test(row.textContent))) load();
  }

  const here = series.filter(({ $endpoint }) => $endpoint === '/probe');
  const requests = here.filter(({ name }) => name === COUNT);
  const rates = some => sum(some.map(one => one.rate || 0));
  const of = (status = '') => requests.filter(({ $http_status }) => $http_status.startsWith(status));
  const total = status => rates(of(status));
  const buckets = bounds.map(le => here.filter(({ $le }) => $le === le));
  const histogram = buckets.map((some, index) => [number(bounds[index]), rates(some)]);
  const cpu = series.find(({ name }) => name[0] === 'p')?.rate;
  const inputs = { samples, total, histogram, cpu, statuses: values(requests, '$http_status') };
  for (const { value, compute, write } of NUMBERS) {
    const result = compute(inputs);
    say(value, Number.isFinite(result) ? write(result, inputs) : '–');
  }

  const counts = histogram.map(([, count], index) => (count - (histogram[index - 1]?.[1] ?? 0)) * (to - from));
  $.bars.replaceChildren(...bounds.map((le, index) => {
    const bar = el('i.ok');
    bar.style.width = `${(55 * counts[index]) / Math.max(...counts, 1)}%`;
    return el('tr', el('th', le), el('td', bar, el('span', Math.round(counts[index]) || '')), el('td', sum(buckets[index].map(one => one.value))));
  }));
  for (const mark of $.marks.children) {
    const { index, fraction } = quantile(mark.textContent.slice(1) / 100, histogram);
    mark.hidden = index === undefined;
    mark.style.top = `${(100 * (index + fraction)) / bounds.length}%`;
  }

  // A column for each scrape: all requests since the last, and in front of them those with 5xx.
  const [all, failed] = ['', '5'].map(status => points.slice(1).map(({ time, samples }, index) => {
    const old = points[index].samples;
    return [time, sum(of(status).map(({ key }) => rise(old.get(key) ?? 0, samples.get(key) ?? 0)))];
  }));
  const peak = Math.max(1, ...all.map(([, count]) => count));
  const path = columns => columns.map(([time, count]) => `M${59.5 - to + time} 1v${-count / peak}`).join('');
  $.good.setAttribute('d', path(all));
  $.bad.setAttribute('d', path(failed));
}

// Break it. The kinds of alert, and the change that makes each fire.
const KINDS = `probe
Server errors: fail-rate=0.5
Client errors: fail-rate=0.5&fail-with=404
Throttling: fail-rate=0.5&fail-with=429
Latency: latency=2s
Slow errors: fail-rate=0.9&fail-with=504&fail-latency=3s
Error budget: fail-rate=0.6
Latency budget: latency=4s
Upstream timeouts: slow-rate=0.5&slow-latency=10s
Retries: fail-rate=0.5&fail-with=503
Resets: fail-rate=0.5&fail-with=reset
Half a body: fail-rate=0.5&fail-with=cut
Queue: latency=2500ms
Unexpected body: fail-rate=1&fail-with=200
CPU: work=50ms
metrics
Target down: fail-rate=1&fail-with=503
Slow scrape: latency=500ms
Unreadable exposition: fail-rate=1&fail-with=200
healthz
Not live: fail-rate=1
Slow probe: latency=700ms
readyz
Not ready: fail-rate=1&fail-with=503
process
Restart: exit-after=1s&for=
Frozen: freeze=1m&for=
Sample limit: series=20000
Body size limit: series=60000
Cardinality: series=5000
Memory growth: memory=64MiB
Out of memory: memory=128MiB
Descriptors: open-files=420`;
$.query.prepend(copyButton());
let offered, until = 0;

// Returns the control of a setting: a copy of the one in the form of a single request, if that form has it.
function field(name) {
  const known = $.faults.elements[name];
  if (known) return known;
  const input = $.own.elements[name]?.cloneNode(true) ?? el('input');
  Object.assign(input, { name, was: '' });
  $.fields.append(el('label', name, input));
  return input;
}

function showChange() {
  const changed = [...$.faults.elements].filter(({ name, value, was }) => name && value && value !== was);
  const changes = changed.map(({ name, value }) => `${name}=${encodeURIComponent(value)}`);
  const path = '/faults/' + $.target.value;
  say($.command, `curl -X PUT '${location.origin}${path.replace('/probe', '')}?${changes.join('&')}'`);
}

// Offers what can be changed, and shows the settings in force except where somebody has typed something else.
async function load() {
  const { targets } = shown;
  $.off.hidden = targets;
  $.faults.hidden = $.own.hidden = !targets;
  if (!targets) return;
  if (targets !== offered) {
    offered = targets;
    $.target.replaceChildren(...targets.split(' ').map(name => new Option(name)));
    $.kind.replaceChildren();
    let group;
    for (const line of KINDS.split('\n')) {
      const [label, query] = line.split(': ');
      if (query) group.append(new Option(label, query));
      else {
        group = Object.assign(el('optgroup'), { label });
        if (targets.includes(label)) $.kind.append(group);
      }
    }
    $.kind.value = '';
  }
  const target = $.target.value;
  const [[, all], [, text]] = await Promise.all([ask('/faults'), ask('/faults/' + target)]).catch(() => [[], []]);
  if (!text || target !== $.target.value) return;
  const others = all.match(/^\w+: .*/gm) ?? [];
  say($.settings, others.join('\n'));
  $.settings.hidden = !others[0];
  until = 0;
  for (const [, name, value] of text.matchAll(/^(.+)=(.+)$/gm)) {
    // The time left of this change. It is shown as a countdown, and is no default for the next change.
    if (name === 'for') {
      until = now() + parseInt(value);
      continue;
    }
    const input = field(name);
    if (input.value === input.was) input.value = value;
    input.was = value;
  }
  showChange();
}

async function change(method, path) {
  const [{ ok }, text] = await ask(path, { method }).catch(() => [{}, 'No response.']);
  say($.told, ok ? 'Done.' : text, ok ? '' : 'bad');
  if (ok) reload();
}

// Discards what somebody has typed.
function reload() {
  $.fields.replaceChildren();
  return load();
}

$.kind.onchange = async () => {
  $.target.value = $.kind.selectedOptions[0].parentNode.label;
  $.for.value = $.for.defaultValue;
  await reload();
  for (const [name, value] of new URLSearchParams($.kind.value)) field(name).value = value;
  showChange();
};
$.target.onchange = reload;
$.faults.oninput = showChange;
$.faults.onsubmit = () => {
  change('PUT', $.command.textContent.split("'")[1]);
  return false;
};
$.back.onclick = () => {
  // So that the same kind can be chosen again.
  $.kind.value = '';
  change('DELETE', '/faults');
};
setInterval(() => {
  const left = Math.ceil(until - now());
  if (until && left < 1) load();
  say($.left, until ? `Ends in ${left} s.` : '');
}, 1000);

document.onvisibilitychange = scrape;
scrape();
