
// What the page does. Text from the service becomes text nodes, never markup.
const $ = {};
for (const element of document.querySelectorAll('[id]')) $[element.id] = element;
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const digits = value => value.toLocaleString('en', { maximumSignificantDigits: 3 });
const seconds = value => (value < 1 ? digits(value * 1000) + ' ms' : digits(value) + ' s');
const sum = values => values.reduce((a, b) => a + b, 0);

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

// Screen readers read what is new in a live region: the same text again is not.
function say(element, text, className = element.className) {
  if (element.textContent != text) Object.assign(element, { textContent: text, className });
}

// Copies the element before it. The newer clipboard needs HTTPS.
function copyButton() {
  const button = el('button.copy', 'Copy');
  button.onclick = () => {
    getSelection().selectAllChildren(button.previousSibling);
    document.execCommand('copy');
    button.textContent = 'Copied';
    return false;
  };
  button.onblur = () => (button.textContent = 'Copy');
  return button;
}

// Ask. A browser opens six connections to a host. Four are for these requests, so that the scrapes
// and the settings have theirs.
const open = new Set();
let queued = 0;
let steady = 0;

async function send() {
  const stop = new AbortController();
  const start = now();
  const query = new URLSearchParams([...new FormData($.own)].filter(([, value]) => value));
  const path = `/probe?${query}`.replace(/\?$/, '');
  let status = 'none';
  let text = 'Refused, reset or closed.';
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
  $.stop.disabled = !waiting;
  if (waiting && !steady) say($.said, `Waiting for ${waiting}.`);
}

function tick() {
  steady = setTimeout(tick, 1000 / ($.rate.value || 1));
  if (open.size < 4) send();
  pump();
}

$.one.onclick = () => pump(1);
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
  say($.said, steady ? 'At most four at a time.' : 'Stopped.');
};

// See. Every process that answers has a history of its own, as every target of Prometheus has. Its
// start time identifies it.
const targets = new Map();
let shown;
let mixed = 0;
let busy;
let timer;

async function scrape() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  const time = now();
  const late = setTimeout(say, 2000, $.state, 'Waiting for a scrape: overloaded or frozen?', '');
  try {
    const [{ ok, status, headers }, text] = await ask('/metrics');
    if (!ok) throw { message: 'status ' + status };
    take(parse(text), time, Date.parse(headers.get('Date')) / 1000);
  } catch ({ message }) {
    say($.state, `Scrape failed: ${message}. Prometheus sets up to 0.`, 'bad');
  }
  clearTimeout(late);
  busy = false;
  timer = setTimeout(scrape, 1000 * (time + 1 - now()));
}

function take(page, time, date) {
  const start = page.samples.get('process_start_time_seconds') ?? 0;
  let target = targets.get(start);
  if (!target) {
    // Started after the last scrape, it is the same target after a restart. Otherwise it is another.
    const restart = shown && !mixed && start > shown.date - 1 ? time : 0;
    target = { ...(restart ? shown : { points: [] }), restart, host: '' };
    if (restart) targets.clear();
    if (restart || !shown) shown = target;
    targets.set(start, target);
    learn(start);
  }
  const before = target.page;
  const samples = new Map([...page.samples].filter(([key]) => /^(app_request_|process_cpu)/.test(key)));
  const points = [...target.points.filter(point => point.time > time - 60), { time, samples }];
  Object.assign(target, { page, date, points });
  if (target !== shown) mixed = time;
  // The one that is shown may have gone.
  if (time - shown.points.at(-1).time > 10) shown = target;
  say($.host, shown.host || '…');
  const hosts = [...targets.values()].map(({ host }) => host || '…').join(', ');
  if (mixed > time - 60) say($.state, `Several processes answer: ${hosts}. You see ${shown.host}; a request or a change reaches any.`, '');
  else if (shown.restart > time - 60) say($.state, 'Restarted: counters began again at 0. rate() allows for that.', '');
  else say($.state, 'Live: scraped once a second.', 'ok');
  if (target === shown) draw(before);
}

// Learns the host's name from the page that it serves. Behind a load balancer another may answer.
async function learn(start) {
  let data = document.body.dataset;
  if (data.start != start) {
    const [, text] = await ask('/').catch(() => [0, '']);
    data = new DOMParser().parseFromString(text, 'text/html').body.dataset;
  }
  const target = targets.get(+data.start);
  if (target) Object.assign(target, data);
  if (target === shown) loadSettings();
  if (targets.get(start)?.host === '') setTimeout(learn, 3000, start);
}

const COUNT = 'app_request_count_total';
const TIME = 'app_request_latency_seconds';
// What a line means, if its help text does not say it.
const MEANING = {
  [COUNT]: 'Each path, status and method has a line of its own: a series.',
  [TIME + '_sum']: 'All times added up. Divided by the count: their mean.',
  [TIME + '_count']: 'All requests.',
};

function changedLines({ samples, TYPE, HELP }, before, bounds) {
  const groups = new Map();
  for (const [key, value] of samples) {
    const old = before.samples.get(key);
    if (old === value) continue;
    // The buckets of a histogram are one row, and so is what may have very many lines.
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
      text = `Took more than ${bounds[bounds.indexOf($le) - 1] ?? 0} s and at most ${$le} s: counts in this and all larger buckets.`;
      if (most > by) text = 'Each request counts in the bucket of its time and all larger ones.';
    }
    return el(
      /^(process_|app_conn)|endpoint=".(metrics|faults)?"/.test(key) ? 'li.own' : 'li',
      code(length > 1 ? key + ' …' : key),
      el('p', `${gauge ? 'Gauge' : $le ? 'Bucket' : 'Counter'}. ${text}`),
      el('span', length > 1 ? length + ' lines' : `${digits(old)} → ${digits(value)}`),
      el('b', (by > 0 ? '+' : '') + digits(by) + (most > by ? '…' + digits(most) : '')),
    );
  });
}

// The numbers: a list, a label, the PromQL, and how the page computes the same.
const AT = '{endpoint="/probe"}';
const NUMBERS = [
  ...[0.5, 0.9, 0.99].map(q => ['times', 'p' + q * 100, `histogram_quantile(${q}, sum by (le) (rate(${TIME}_bucket${AT}[1m])))`, ({ histogram }) => quantile(q, histogram).value, seconds]),
  ['rates', 'Requests per second', `sum by (http_status) (rate(${COUNT}${AT}[1m]))`, ({ total }) => total(), (_, { total, statuses }) => statuses.map(status => `${digits(total(status))} with ${status}`).join('\n')],
  ['rates', 'Error ratio', `sum(rate(${COUNT}{endpoint="/probe",http_status=~"5.."}[1m])) / sum(rate(${COUNT}${AT}[1m]))`, ({ total }) => total('5') / total(), value => digits(value * 100) + '%'],
  ['costs', 'Requests in flight', 'app_requests_in_flight'],
  ['costs', 'Open connections', 'app_connections_open'],
  ['costs', 'CPU cores busy', 'rate(process_cpu_seconds_total[1m])', ({ cpu }) => cpu],
  ['costs', 'Memory', 'process_resident_memory_bytes', , value => digits(value / 1e6) + ' MB'],
].map(([list, label, promql, compute = ({ page }) => page.samples.get(promql), write = digits]) => {
  const value = el('b');
  const row = el('li', el('span', label), value, code(promql), copyButton());
  $[list].append(row);
  return { row, value, compute, write };
});

function draw(before) {
  const { page, points } = shown;
  const { time: to, samples: latest } = points.at(-1);
  const from = points[0].time;
  const series = [...latest].map(([key, value]) => {
    const has = points.filter(({ samples }) => samples.has(key));
    return { ...parseKey(key), value, rate: rate(has.map(({ time, samples }) => [time, samples.get(key)]), from, to) };
  });
  const values = (some, label) => [...new Set(some.map(one => one[label]))].filter(Boolean);
  const bounds = values(series, '$le');
  if (before) {
    const rows = changedLines(page, before, bounds);
    const own = rows.filter(row => row.className);
    const asked = rows.filter(row => !row.className);
    say($.noise, own.length);
    $.own_changes.replaceChildren(...own);
    if (asked[0]) {
      $.changes.replaceChildren(...asked);
      say($.when, `At ${new Date(to * 1000).toLocaleTimeString()}:`);
    }
    if (asked.some(row => /^app_(conf|fault)/.test(row.textContent))) loadSettings();
  }

  const here = series.filter(({ $endpoint }) => $endpoint === '/probe');
  const requests = here.filter(({ name }) => name === COUNT);
  const rates = some => sum(some.map(one => one.rate || 0));
  const total = (status = '') => rates(requests.filter(({ $http_status }) => $http_status.startsWith(status)));
  const buckets = bounds.map(le => here.filter(({ $le }) => $le === le));
  const histogram = buckets.map((some, index) => [number(bounds[index]), rates(some)]);
  const cpu = series.find(({ name }) => name[0] === 'p')?.rate;
  const inputs = { page, total, histogram, cpu, statuses: values(requests, '$http_status') };
  for (const { row, value, compute, write } of NUMBERS) {
    const result = compute(inputs);
    row.hidden = result === undefined;
    say(value, Number.isFinite(result) ? write(result, inputs) : '–');
  }

  const counts = histogram.map(([, count], index) => (count - (histogram[index - 1]?.[1] ?? 0)) * (to - from));
  bounds.forEach((le, index) => {
    if (!$.bars.rows[index]) $.bars.append(el('tr', el('th', le), el('td', el('i'), el('span')), el('td')));
    const [, bar, counter] = $.bars.rows[index].cells;
    bar.firstChild.style.width = `${(70 * counts[index]) / Math.max(...counts, 1)}%`;
    say(bar.lastChild, Math.round(counts[index]) || '');
    say(counter, sum(buckets[index].map(one => one.value)));
  });
  for (const mark of $.marks.children) {
    const { index, fraction } = quantile(mark.textContent.slice(1) / 100, histogram);
    mark.hidden = index === undefined;
    mark.style.top = `${(100 * (index + fraction)) / bounds.length}%`;
  }

  // A column for each scrape: those with 5xx on top of the others.
  let [peak, good, bad] = [1, '', ''];
  points.reduce((last, point) => {
    const risen = failed => sum(requests.map(({ key, $http_status }) => ($http_status > '499' === failed ? rise(last.samples.get(key) ?? 0, point.samples.get(key) ?? 0) : 0)));
    const [x, ok, failed] = [59.5 - to + point.time, risen(false), risen(true)];
    good += `M${x} 0v${-ok}`;
    bad += `M${x} ${-ok}v${-failed}`;
    peak = Math.max(peak, ok + failed);
    return point;
  });
  $.chart.setAttribute('viewBox', `0 ${-peak} 60 ${peak}`);
  $.good.setAttribute('d', good);
  $.bad.setAttribute('d', bad);
  say($.peak, peak);
}

// Break it. The kinds of alert: a label, what to change, what happens, the target after /faults.
const KINDS = [
  ['my own', '', 'Change a value.'],
  ['High error ratio', 'fail-rate=0.2', 'One request in five fails.'],
  ['Outage', 'fail-rate=1', 'Every request fails.'],
  ['High latency', 'latency=900ms', 'Requests take 0.9 s on average.'],
  ['Slow few', 'slow-rate=0.05&slow-latency=3s', 'One request in 20 takes 3 s: p99 rises, p50 does not.'],
  ['High CPU', 'work=100ms', 'Ten requests a second keep one core busy.'],
];
$.kind.append(...KINDS.map(([label], index) => new Option(label, index)));
$.query.append(copyButton());
let until = 0;
const inputs = () => [...$.fields.querySelectorAll('input')];

function field(name) {
  let input = inputs().find(one => one.name === name);
  if (!input) {
    input = Object.assign(el('input'), { name });
    $.fields.append(el('label', name, input));
  }
  return input;
}

// Shows the settings in force, except where somebody has typed something else.
function showSettings(text) {
  until = 0;
  const others = text.trim().split('\n').filter(line => {
    const [, name, value] = /^([\w-]+)=(\S+)$/.exec(line) ?? [];
    if (name === 'for') until = now() + parseInt(value);
    else if (name) field(name).defaultValue = value;
    return !name;
  });
  say($.settings, others.join('\n'));
  $.settings.hidden = !others[0];
  showChange();
}

function showChange() {
  const changed = inputs().filter(({ value, defaultValue }) => value !== defaultValue);
  const changes = changed.map(({ name, value }) => `${name}=${encodeURIComponent(value)}`);
  if ($.for.value) changes.push('for=' + $.for.value);
  say($.command, `curl -X PUT '${location.origin}/faults${KINDS[$.kind.value][3] ?? ''}?${changes.join('&')}'`);
}

async function change(method, path, done) {
  try {
    const [{ ok }, text] = await ask(path, { method });
    say($.told, ok ? done : text, ok ? '' : 'bad');
    if (!ok) return;
    $.fields.replaceChildren();
    showSettings(text);
  } catch {
    say($.told, 'No response.', 'bad');
  }
}

function loadSettings() {
  const on = shown.faults === 'on';
  $.off.hidden = on;
  $.faults.hidden = $.own.hidden = !on;
  if (on) ask('/faults').then(([, text]) => showSettings(text), () => {});
}

$.kind.onchange = () => {
  const [, query, hint] = KINDS[$.kind.value];
  for (const input of inputs()) input.value = input.defaultValue;
  for (const [name, value] of new URLSearchParams(query)) field(name).value = value;
  say($.hint, hint);
  showChange();
};
$.fields.oninput = $.for.onchange = showChange;
$.faults.onsubmit = () => {
  change('PUT', $.command.textContent.split("'")[1], 'In force.');
  return false;
};
$.back.onclick = () => change('DELETE', '/faults', 'As at the start.');
setInterval(() => {
  const left = Math.ceil(until - now());
  if (until && left < 1) loadSettings();
  say($.left, until ? `Ends in ${left} s.` : '');
}, 1000);

document.onvisibilitychange = scrape;
scrape();
