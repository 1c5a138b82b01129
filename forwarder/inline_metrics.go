package forwarder

import (
	"github.com/prometheus/client_golang/prometheus"
)

type inlineMetrics struct {
	transactions *prometheus.CounterVec // by outcome
	opened       prometheus.Counter
	reused       prometheus.Counter
	wait         prometheus.Histogram
	seconds      *prometheus.HistogramVec // by step
}

func newInlineMetrics(reg prometheus.Registerer, f *Forwarder) *inlineMetrics {
	buckets := []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 90}
	m := &inlineMetrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_forwarder_inline_transactions_total",
			Help: "Inline transactions by outcome: taken, refused, deferred, away (the spool's road), in_doubt, exhausted, aborted, fault.",
		}, []string{"outcome"}),
		opened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_forwarder_inline_sessions_opened_total", Help: "Sessions opened for inline transactions.",
		}),
		reused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_forwarder_inline_sessions_reused_total", Help: "Transactions that found a session waiting for them.",
		}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_forwarder_inline_wait_seconds", Help: "How long transactions waited for their place.", Buckets: buckets,
		}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "understudy_forwarder_inline_seconds", Help: "How long a primary took to answer inline, by step: rcpt, content.", Buckets: buckets,
		}, []string{"step"}),
	}
	busy := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "understudy_forwarder_inline_sessions", Help: "Inline transactions now, each with a session of its own.",
	}, func() float64 { return sum(f, func(s *PoolStatus) int { return s.Busy }) })
	warm := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "understudy_forwarder_inline_warm", Help: "Sessions that wait for an inline transaction.",
	}, func() float64 { return sum(f, func(s *PoolStatus) int { return s.Warm + s.Own }) })
	if reg != nil {
		reg.MustRegister(m.transactions, m.opened, m.reused, m.wait, m.seconds, busy, warm)
	}
	return m
}

func sum(f *Forwarder, of func(*PoolStatus) int) float64 {
	n := 0
	for _, s := range f.Pools() {
		n += of(&s)
	}
	return float64(n)
}
