package inbound

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open       prometheus.Gauge
	refused    *prometheus.CounterVec // reason
	accepted   prometheus.Counter
	messages   *prometheus.CounterVec // result
	octets     prometheus.Counter
	recipients *prometheus.CounterVec // result
	handshakes *prometheus.CounterVec // result
	put        prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "understudy_inbound_connections", Help: "Connections from senders that are open now.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_connections_refused_total", Help: "Connections that ended before their first command, by reason.",
		}, []string{"reason"}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_connections_total", Help: "Connections that were greeted.",
		}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_messages_total", Help: "Messages whose content was read, by the class of the reply.",
		}, []string{"result"}),
		octets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_content_bytes_total", Help: "Octets of content of messages that were accepted.",
		}),
		recipients: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_recipients_total", Help: "Recipients, by the class of the reply.",
		}, []string{"result"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_tls_handshakes_total", Help: "TLS handshakes, by version or failed.",
		}, []string{"result"}),
		put: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_inbound_put_seconds", Help: "How long the spool took to keep a message.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
	}
	reg.MustRegister(m.open, m.refused, m.accepted, m.messages, m.octets, m.recipients, m.handshakes, m.put)
	return m
}

// result is the label of a reply code.
func result(code int) string {
	switch code / 100 {
	case 2, 3:
		return "accepted"
	case 4:
		return "deferred"
	default:
		return "rejected"
	}
}
