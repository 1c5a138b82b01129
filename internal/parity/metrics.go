package parity

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
)

// metrics counts pairs; rates are worked out when they are asked for.
type metrics struct {
	t                 *Tally
	pairs             *prometheus.CounterVec
	bypass, overBlock *prometheus.Desc
}

func newMetrics(reg prometheus.Registerer, t *Tally) (*metrics, error) {
	m := &metrics{
		t: t,
		pairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "understudy", Subsystem: "parity", Name: "pairs_total",
			Help: "Our verdict beside the primary's word for the same mail, by when ours was made.",
		}, []string{"kind", "ours", "theirs"}),
		bypass:    prometheus.NewDesc("understudy_parity_bypass_rate", "Share of what we take that the primary refuses for its content, in the last days.", []string{"domain", "kind"}, nil),
		overBlock: prometheus.NewDesc("understudy_parity_over_block_rate", "Share of what we refuse or hold that the primary accepts, in the last days.", []string{"domain", "kind"}, nil),
	}
	if reg == nil {
		return m, nil
	}
	if err := reg.Register(m.pairs); err != nil {
		return nil, err
	}
	return m, reg.Register(m)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.bypass; ch <- m.overBlock }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.t.mu.Lock()
	sums := m.t.sums(time.Now())
	m.t.mu.Unlock()
	for domain, of := range sums {
		for kind := range of {
			name := mta.PairKind(kind).String()
			if r := of[kind].Bypass(); r.Of > 0 {
				ch <- prometheus.MustNewConstMetric(m.bypass, prometheus.GaugeValue, r.Rate, domain, name)
			}
			if r := of[kind].OverBlock(); r.Of > 0 {
				ch <- prometheus.MustNewConstMetric(m.overBlock, prometheus.GaugeValue, r.Rate, domain, name)
			}
		}
	}
}
