package filter

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	messages *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	up       *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "understudy", Subsystem: "filter", Name: "messages_total",
			Help: "Messages by filter and the strictest action that it asked for, also for want of an answer.",
		}, []string{"filter", "action"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "understudy", Subsystem: "filter", Name: "seconds", Help: "How long a filter took, or failed to answer.",
			Buckets: []float64{.005, .02, .1, .5, 2, 10, 60},
		}, []string{"filter"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "understudy", Subsystem: "filter", Name: "up", Help: "1 while the filter is asked, 0 while it is not because it did not answer.",
		}, []string{"filter"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.messages, m.seconds, m.up} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("filter: metrics: %w", err)
		}
	}
	return m, nil
}

// forget drops the series of a filter.
func (m *metrics) forget(name string) {
	m.messages.DeletePartialMatch(prometheus.Labels{"filter": name})
	m.seconds.DeleteLabelValues(name)
	m.up.DeleteLabelValues(name)
}
