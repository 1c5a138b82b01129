package inbound

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open       prometheus.Gauge
	refused    *prometheus.CounterVec // reason
	accepted   prometheus.Counter
	messages   results
	octets     prometheus.Counter
	recipients results
	handshakes *prometheus.CounterVec // result
	put        prometheus.Histogram
	inline     inlineMetrics
}

// inlineMetrics are of the transactions with primaries.
type inlineMetrics struct {
	open       prometheus.Gauge
	recipients results
	messages   results
	left       *prometheus.CounterVec // step
	unsure     prometheus.Counter
	crowded    prometheus.Counter
	paused     prometheus.Counter
	send       prometheus.Histogram
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
		messages: newResults("understudy_inbound_messages_total", "Messages whose content was read, by the class of the reply."),
		octets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_content_bytes_total", Help: "Octets of content of messages that were accepted.",
		}),
		recipients: newResults("understudy_inbound_recipients_total", "Recipients, by the class of the reply."),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_tls_handshakes_total", Help: "TLS handshakes, by version or failed.",
		}, []string{"result"}),
		put: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_inbound_put_seconds", Help: "How long the spool took to keep a message.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
	}
	reg.MustRegister(m.open, m.refused, m.accepted, m.messages.vec, m.octets, m.recipients.vec, m.handshakes, m.put)
	m.inline = newInlineMetrics(reg)
	return m
}

func newInlineMetrics(reg prometheus.Registerer) inlineMetrics {
	m := inlineMetrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "understudy_inbound_inline_transactions", Help: "Transactions with primaries that are open now.",
		}),
		recipients: newResults("understudy_inbound_inline_recipients_total", "Recipients that a primary answered for, by the class of its reply."),
		messages:   newResults("understudy_inbound_inline_messages_total", "Messages that a primary answered for, by the class of its reply."),
		left: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_inbound_inline_left_total", Help: "Transactions that were spooled instead because the primary went away, by step.",
		}, []string{"step"}),
		unsure: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_inline_unconfirmed_total", Help: "Messages that were handed over, perhaps, without a reply: the sender was told to try again.",
		}),
		crowded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_inline_crowded_total", Help: "Recipients that were deferred because their sender's network had too many transactions.",
		}),
		paused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_inbound_inline_paused_total", Help: "Transactions that were given back to be opened anew, because their senders were slow.",
		}),
		send: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_inbound_inline_send_seconds", Help: "How long a primary took for the content and its final reply.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30, 90},
		}),
	}
	for _, step := range []string{"begin", "rcpt", "content"} {
		m.left.WithLabelValues(step)
	}
	reg.MustRegister(m.open, m.recipients.vec, m.messages.vec, m.left, m.unsure, m.crowded, m.paused, m.send)
	return m
}

// results counts replies by their class: 2yz, 4yz, 5yz.
type results struct {
	vec                          *prometheus.CounterVec
	accepted, deferred, rejected prometheus.Counter
}

func newResults(name, help string) results {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"})
	return results{v, v.WithLabelValues("accepted"), v.WithLabelValues("deferred"), v.WithLabelValues("rejected")}
}

func (r *results) of(code int) prometheus.Counter {
	switch code / 100 {
	case 2, 3:
		return r.accepted
	case 4:
		return r.deferred
	default:
		return r.rejected
	}
}
