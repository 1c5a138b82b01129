package forwarder

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	results  *prometheus.CounterVec // by outcome
	sessions *prometheus.CounterVec // by end
	delay    prometheus.Histogram
	settle   prometheus.Histogram
	faults   prometheus.Counter
	trips    prometheus.Counter
	inline   *inlineMetrics
}

func newMetrics(reg prometheus.Registerer, f *Forwarder) *metrics {
	m := &metrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_forwarder_results_total", Help: "Recipients by what became of a try: delivered, deferred, quarantined.",
		}, []string{"outcome"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_forwarder_sessions_total", Help: "Sessions with primaries by how they ended: ok, or the step that failed.",
		}, []string{"end"}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_forwarder_delay_seconds", Help: "From receipt to delivery.",
			Buckets: []float64{.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600},
		}),
		settle: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_forwarder_settle_seconds", Help: "Time to store a batch of outcomes.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3},
		}),
		faults: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_forwarder_faults_total", Help: "Troubles of our own that made mail wait.",
		}),
	}
	m.trips = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "understudy_forwarder_breaker_trips_total", Help: "Times that a primary which came back refused so much that its drain was stopped.",
	})
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "understudy_forwarder_sessions", Help: "Sessions with primaries now.",
	}, func() float64 { return float64(f.sessions()) })
	if reg != nil {
		reg.MustRegister(m.results, m.sessions, m.delay, m.settle, m.faults, m.trips, running)
	}
	m.inline = newInlineMetrics(reg, f)
	return m
}
