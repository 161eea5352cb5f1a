"""The same two metrics as in tiny-probe, with Flask and prometheus_client, as taught in a course on Kubernetes.

    flask --app app run --port 8080        on Flask's own server
    gunicorn --workers 1 app:app           on gunicorn
"""

import time

from flask import Flask, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, Info, generate_latest

LATENCY = Histogram(
    "app_request_latency_seconds", "Application Request Latency", ["method", "endpoint"]
)
COUNT = Counter(
    "app_request_count", "Application Request Count", ["method", "endpoint", "http_status"]
)
Info("app_version", "Application Version").info({"version": "1", "config": "develop"})

app = Flask(__name__)


@app.before_request
def start_the_clock():
    request.started = time.perf_counter()


@app.after_request
def record(response):
    LATENCY.labels(request.method, request.path).observe(time.perf_counter() - request.started)
    COUNT.labels(request.method, request.path, response.status_code).inc()
    return response


@app.route("/probe")
def probe():
    return "I'm ok!"


@app.route("/metrics")
def metrics():
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)
