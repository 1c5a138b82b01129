package healthprobe

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	probes      *prometheus.CounterVec   // by result
	steps       *prometheus.HistogramVec // by step
	transitions *prometheus.CounterVec   // by the state entered
	lookups     *prometheus.CounterVec   // of routes, by result
	running     prometheus.Gauge
	first       prometheus.Histogram // from recovery to the first delivery
	drain       prometheus.Histogram // from recovery to the end of the drain
}

func newMetrics(reg prometheus.Registerer, p *Prober) *metrics {
	m := &metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_healthprobe_probes_total", Help: "Probes by what they brought: took, refused, failed, ours.",
		}, []string{"result"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "understudy_healthprobe_step_seconds", Help: "How long each step of a probe took.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10},
		}, []string{"step"}),
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_healthprobe_transitions_total", Help: "Changes of a primary's state, by the state entered.",
		}, []string{"state"}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_healthprobe_route_lookups_total", Help: "Lookups of a domain's route in the DNS: found, none, failed.",
		}, []string{"result"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "understudy_healthprobe_probes_running", Help: "Probes on their way.",
		}),
		first: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_healthprobe_first_delivery_seconds", Help: "From a primary's recovery to the first message that it took.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100, 1000},
		}),
		drain: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_healthprobe_drain_seconds", Help: "From a primary's recovery to the end of its drain.",
			Buckets: []float64{1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.probes, m.steps, m.transitions, m.lookups, m.running, m.first, m.drain, &stateCollector{p})
	}
	return m
}

var (
	stateDesc = prometheus.NewDesc("understudy_healthprobe_primary_state",
		"1 for the state that each primary is in.", []string{"primary", "state"}, nil)
	sinceDesc = prometheus.NewDesc("understudy_healthprobe_primary_since_timestamp_seconds",
		"When each primary entered its state.", []string{"primary"}, nil)
)

// stateCollector reads the states when it is asked for them: there may be thousands, and they come and go.
type stateCollector struct{ p *Prober }

func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- stateDesc; ch <- sinceDesc }

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.p.stateMetrics() { // sent without the lock: who reads them may be slow
		ch <- m
	}
}

func (p *Prober) stateMetrics() []prometheus.Metric {
	p.mu.Lock()
	defer p.mu.Unlock()
	ms := make([]prometheus.Metric, 0, 2*len(p.watches))
	for _, w := range p.watches {
		ms = append(ms, prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, 1, w.key, w.belief.state.String()))
		if !w.belief.since.IsZero() {
			since := float64(w.belief.since.UnixMilli()) / 1e3
			ms = append(ms, prometheus.MustNewConstMetric(sinceDesc, prometheus.GaugeValue, since, w.key))
		}
	}
	return ms
}
