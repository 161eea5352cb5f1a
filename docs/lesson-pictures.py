#!/usr/bin/env python3
"""Draws the pictures of lesson.md: docs/lesson-*.svg.

The numbers in them are those of the lesson, and the curves are computed as Prometheus computes them.
Each picture has a background of its own and follows the color scheme of the browser.
"""

import random
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
STYLE = """
text { fill: var(--ink); font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
.small { font-size: 12px } .bold { font-weight: 600 } .soft { fill: var(--soft) }
.code { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; font-size: 12px }
.card { fill: var(--card); stroke: var(--edge) }
.box { fill: var(--box); stroke: var(--soft) } .bar { fill: var(--bar) } .hot { fill: var(--hot) }
.line { fill: none; stroke: var(--bar); stroke-width: 2 } .hotline { fill: none; stroke: var(--hot); stroke-width: 2 }
.axis { fill: none; stroke: var(--soft) } .dash { fill: none; stroke: var(--hot); stroke-dasharray: 5 4 }
.pending { fill: var(--pending) } .firing { fill: var(--firing) }
svg { --card: #ffffff; --edge: #d0d7de; --box: #f3f5f7; --ink: #1f2328; --soft: #59636e; --bar: #2f6fd0;
  --hot: #c2410c; --pending: #fbe3a5; --firing: #f9c3b3 }
@media (prefers-color-scheme: dark) { svg { --card: #0d1117; --edge: #3d444d; --box: #1d232b; --ink: #f0f6fc;
  --soft: #9198a1; --bar: #6aa5ff; --hot: #ff9b6a; --pending: #5a4a12; --firing: #6e2a1c } }
"""


class Picture:
    """An SVG of a given size, built up element by element."""

    def __init__(self, name, title, width, height):
        self.path = FOLDER / f"lesson-{name}.svg"
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="title">',
            f'<title id="title">{escape(title)}</title>',
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
        ]

    def text(self, x, y, text, style="", anchor="start"):
        self.parts.append(f'<text x="{x:.4g}" y="{y:.4g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>')

    def rect(self, x, y, width, height, style):
        self.parts.append(f'<rect class="{style}" x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}"/>')

    def path_of(self, points, style):
        self.parts.append(f'<path class="{style}" d="M{" L".join(f"{x:.5g} {y:.5g}" for x, y in points)}"/>')

    def dot(self, x, y, style):
        self.parts.append(f'<circle class="{style}" cx="{x:.5g}" cy="{y:.5g}" r="3"/>')

    def arrow(self, x1, x2, y):
        """Draws a horizontal arrow from x1 to x2."""
        back = 6 if x1 < x2 else -6
        self.path_of([(x1, y), (x2, y)], "axis")
        self.path_of([(x2 - back, y - 4), (x2, y), (x2 - back, y + 4)], "axis")

    def write(self):
        self.path.write_text("\n".join([*self.parts, "</svg>", ""]))


def way():
    """The way from a request to an alert."""
    picture = Picture("way", "A service counts, Prometheus scrapes, calculates and evaluates rules, and Alertmanager notifies", 800, 190)
    boxes = [(20, 160, "tiny-probe", ["counts each request", "in its own memory"]),
             (260, 180, "Prometheus", ["stores the samples,", "evaluates rules"]),
             (510, 130, "Alertmanager", ["groups alerts"]),
             (720, 60, "you", [])]
    for x, width, name, lines in boxes:
        picture.rect(x, 60, width, 80, "box")
        picture.text(x + width / 2, 105 - 10 * len(lines), name, "bold", "middle")
        for row, line in enumerate(lines):
            picture.text(x + width / 2, 126 - 9 * len(lines) + 18 * row, line, "small soft", "middle")
    picture.arrow(260, 182, 82)
    picture.text(221, 74, "GET", "small", "middle")
    picture.arrow(180, 258, 120)
    picture.text(220, 138, "metrics", "small", "middle")
    picture.arrow(440, 508, 100)
    picture.text(475, 92, "alert", "small", "middle")
    picture.arrow(640, 718, 100)
    picture.text(680, 92, "e-mail", "small", "middle")
    picture.text(20, 34, "From a request to an alert", "bold")
    picture.text(100, 166, "Steps 1 to 6, 10", "small soft", "middle")
    picture.text(350, 166, "Steps 7 to 10, every second", "small soft", "middle")
    picture.text(575, 166, "make demo", "small soft", "middle")
    picture.write()


def buckets():
    """Ten requests in buckets, and the 0.95 quantile of them."""
    picture = Picture("buckets", "Ten requests fall into three buckets; the 0.95 quantile is interpolated in the last one", 800, 300)
    bounds = ["0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf"]
    fallen = {"0.005": 8, "0.5": 1, "0.75": 1}
    left, step, base = 30, 49, 178
    picture.text(20, 30, "Ten requests: each one falls into one bucket", "bold")
    picture.text(20, 50, "The number below is what the exposition shows: this bucket and all before it.", "small soft")
    total = 0
    for index, bound in enumerate(bounds):
        x, count = left + index * step, fallen.get(bound, 0)
        total += count
        for row in range(count):
            picture.rect(x + 8, base - 12 - 12 * row, 30, 10, "bar" if bound != "0.75" else "hot")
        picture.text(x + step - 3, base + 17, bound, "code", "end")
        picture.text(x + step - 3, base + 37, str(total), "code bold", "end")
    picture.path_of([(left, base), (left + step * len(bounds), base)], "axis")
    picture.text(12, base + 17, "le", "code soft")
    # The interpolation, as histogram_quantile does it.
    rank = 0.95 * 10
    value = 0.5 + (rank - 9) / (10 - 9) * 0.25
    at = base + 84
    lower, upper = 470, 700
    picture.text(20, at - 8, "The 0.95 quantile has the rank 0.95 × 10 = 9.5:", "small")
    picture.text(20, at + 10, "halfway through the only request between 0.5 and 0.75.", "small")
    picture.path_of([(lower, at), (upper, at)], "hotline")
    for x in (lower, upper):
        picture.path_of([(x, at - 6), (x, at + 6)], "axis")
    middle = lower + (upper - lower) * (value - 0.5) / 0.25
    picture.dot(middle, at, "hot")
    picture.text(middle, at - 12, f"rank {rank:g}: {value:g} s", "small bold", "middle")
    picture.text(lower, at + 22, "rank 9: 0.5 s", "small soft", "middle")
    picture.text(upper, at + 22, "rank 10: 0.75 s", "small soft", "middle")
    picture.write()


def resets():
    """A counter that is reset by a restart, and its rate."""
    picture = Picture("reset", "A counter that falls to 0 at a restart, and its rate, which does not", 800, 330)
    per_second, restart, back, end, window = 20, 30, 32, 60, 10
    # One scrape per second; those between the restart and the first response fail.
    samples, count = [], 400
    for second in range(end + 1):
        if restart <= second < back:
            continue
        if second == back:
            count = 0
        samples.append((second, count))
        count += per_second

    def rate(now):
        """rate() with its handling of resets; the extrapolation to the edges of the window is left out."""
        inside = [sample for sample in samples if now - window <= sample[0] <= now]
        increase = sum(b - a if b >= a else b for (_, a), (_, b) in zip(inside, inside[1:]))
        return increase / (inside[-1][0] - inside[0][0])

    left, right = 70, 780
    x_of = lambda second: left + (right - left) * second / end
    y_of = lambda count: 170 - 110 * count / 1000
    picture.text(20, 30, "A counter, scraped once a second", "bold")
    for tick in (0, 500, 1000):
        picture.text(left - 8, y_of(tick) + 4, str(tick), "small soft", "end")
    picture.path_of([(left, 60), (left, 170), (right, 170)], "axis")
    before = [(x_of(s), y_of(c)) for s, c in samples if s < restart]
    after = [(x_of(s), y_of(c)) for s, c in samples if s >= back]
    picture.path_of(before, "line")
    picture.path_of(after, "line")
    picture.path_of([(x_of(restart - 1), 52), (x_of(restart - 1), 300)], "dash")
    picture.text(x_of(restart) + 12, 64, "restart: the next sample is lower than the last one,", "small")
    picture.text(x_of(restart) + 12, 80, "so all that it counts is new", "small")
    picture.text(20, 205, "Its rate over 10 seconds, rate(…[10s])", "bold")
    y_of = lambda rate: 300 - 70 * rate / 25
    for tick in (0, 10, 20):
        picture.text(left - 8, y_of(tick) + 4, str(tick), "small soft", "end")
    picture.path_of([(left, 222), (left, 300), (right, 300)], "axis")
    rates = [(x_of(s), y_of(rate(s))) for s, _ in samples if s >= window]
    picture.path_of(rates, "hotline")
    picture.text(x_of(0), 318, "0 s", "small soft", "middle")
    for tick in (20, 40, 60):
        picture.text(x_of(tick), 318, f"{tick} s", "small soft", "end" if tick == 60 else "middle")
    picture.text(x_of(restart) + 12, 290, "a dip of the requests that failed, nothing more", "small")
    picture.write()


def alert():
    """The states of an alert, on the error ratio over a minute."""
    picture = Picture("alert", "The error ratio crosses the threshold: pending for ten seconds, then firing, until it falls below it", 800, 300)
    window, start, fault, hold, end, threshold = 60, 20, 20, 10, 110, 0.05
    draw = random.Random(1)
    failed = [sum(draw.random() < 0.5 for _ in range(20)) if start <= second < start + fault else 0 for second in range(end + 1)]
    ratio = [sum(failed[max(0, second - window):second]) / (20 * window) for second in range(end + 1)]
    above = [second for second in range(end + 1) if ratio[second] > threshold]
    left, right, top, base = 70, 780, 80, 240
    x_of = lambda second: left + (right - left) * second / end
    y_of = lambda ratio: base - (base - top) * ratio / 0.2
    picture.text(20, 30, "The error ratio over the last minute, and the state of the alert", "bold")
    pending, firing, resolved = above[0], above[0] + hold, above[-1] + 1
    picture.rect(x_of(pending), top - 24, x_of(firing) - x_of(pending), base - top + 24, "pending")
    picture.rect(x_of(firing), top - 24, x_of(resolved) - x_of(firing), base - top + 24, "firing")
    picture.text((x_of(pending) + x_of(firing)) / 2, top - 8, "pending", "small", "middle")
    picture.text((x_of(firing) + x_of(resolved)) / 2, top - 8, "firing", "small", "middle")
    picture.text((x_of(resolved) + right) / 2, top - 8, "resolved", "small", "middle")
    for tick in (0, 0.1, 0.2):
        picture.text(left - 8, y_of(tick) + 4, f"{tick:.0%}", "small soft", "end")
    picture.path_of([(left, top - 24), (left, base), (right, base)], "axis")
    picture.path_of([(left, y_of(threshold)), (right, y_of(threshold))], "dash")
    picture.text(left - 8, y_of(threshold) + 4, "5%", "small bold", "end")
    picture.path_of([(x_of(second), y_of(value)) for second, value in enumerate(ratio)], "line")
    for tick in range(0, end + 1, 20):
        picture.text(x_of(tick), base + 18, f"{tick} s", "small soft", "middle")
    at = base + 42
    picture.path_of([(x_of(start), at - 8), (x_of(start + fault), at - 8)], "hotline")
    picture.text(x_of(start + fault) + 8, at - 4, "the fault: half of the requests fail for 20 s", "small")
    picture.write()


for draw_picture in (way, buckets, resets, alert):
    draw_picture()
