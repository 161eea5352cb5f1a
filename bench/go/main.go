// The same two metrics as in tiny-probe, with net/http and client_golang.
//
//	peer-go 127.0.0.1:8080
package main

import (
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The registry has the metrics of the process but not those of the Go runtime, so that all servers expose
// the same series.
var (
	registry = prometheus.NewRegistry()
	auto     = promauto.With(registry)
	latency  = auto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "app_request_latency_seconds",
		Help:    "Application Request Latency",
		Buckets: []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10},
	}, []string{"method", "endpoint"})
	count = auto.NewCounterVec(prometheus.CounterOpts{
		Name: "app_request_count_total",
		Help: "Application Request Count",
	}, []string{"method", "endpoint", "http_status"})
)

// statusWriter remembers the status code.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// recorded wraps a handler and records every request. The series of a successful GET, which nearly all
// requests have, are looked up only once.
func recorded(endpoint string, handler http.Handler) http.HandlerFunc {
	usualLatency := latency.WithLabelValues(http.MethodGet, endpoint)
	usualCount := count.WithLabelValues(http.MethodGet, endpoint, "200")
	return func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		writer := &statusWriter{w, http.StatusOK}
		handler.ServeHTTP(writer, r)
		seconds := time.Since(started).Seconds()
		if r.Method == http.MethodGet && writer.status == http.StatusOK {
			usualLatency.Observe(seconds)
			usualCount.Inc()
			return
		}
		latency.WithLabelValues(r.Method, endpoint).Observe(seconds)
		count.WithLabelValues(r.Method, endpoint, strconv.Itoa(writer.status)).Inc()
	}
}

func main() {
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	http.Handle("/probe", recorded("/probe", http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Write([]byte("I'm ok!"))
		})))
	http.Handle("/metrics", recorded("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{})))
	http.Handle("/", recorded("other", http.NotFoundHandler()))
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
