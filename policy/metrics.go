package policy

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/dnsbl"
	"understudy/internal/mta"
)

// metrics counts what was said and done.
type metrics struct {
	answers  *prometheus.CounterVec
	looks    *prometheus.CounterVec
	callouts *prometheus.CounterVec
	judged   map[string]*actionCounters // by step
	roads    [mta.Inline + 1]prometheus.Counter
	deferred prometheus.Counter // recipients that were sent to the primary itself
	limited  *prometheus.CounterVec
	shadows  *prometheus.CounterVec
	fixed    map[string]*verdictCounters // of what decides when no list does
}

// recipientsLabel stands for all files that domains name as recipients.
const recipientsLabel = "recipients"

// verdictCounters count by verdict. They are looked up once: a label costs as much as a recipient.
type verdictCounters [3]prometheus.Counter

// actionCounters count by action, looked up once for the same reason.
type actionCounters [mta.Reject + 1]prometheus.Counter

func countersOf(judged *prometheus.CounterVec) map[string]*actionCounters {
	m := map[string]*actionCounters{}
	for _, step := range []string{stepRcpt, stepContent, stepHindsight} {
		var c actionCounters
		for a := range c {
			c[a] = judged.WithLabelValues(step, mta.Action(a).String())
		}
		m[step] = &c
	}
	return m
}

func (m *metrics) counters(source string) *verdictCounters {
	var c verdictCounters
	for _, v := range []Verdict{Defer, Accept, Reject} {
		c[v] = m.answers.WithLabelValues(source, v.String())
	}
	return &c
}

func newMetrics(reg prometheus.Registerer, p *Policy) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "understudy", Subsystem: "policy", Name: name, Help: help}, labels)
	}
	m := &metrics{
		answers:  counter("recipients_total", "Recipients that were decided about, by what decided and how.", "source", "verdict"),
		looks:    counter("source_looks_total", "Looks at sources of recipients, by source and result (ok, failed).", "source", "result"),
		callouts: counter("callouts_total", "Questions to primaries about a recipient, by what was learned.", "result"),
		limited:  counter("limited_total", "Recipients that were put off because their client network or sender domain brings too much, by limit.", "limit"),
		shadows:  counter("shadows_total", "Messages that went inline and were to be judged beside the primary, by what became of that (judged, failed, busy).", "result"),
	}
	judged := counter("judged_total", "Judgements of mail that is kept here, by step (rcpt, content, hindsight) and action.", "step", "action")
	m.judged = countersOf(judged)
	roads := counter("roads_total", "Recipients by the way that their mail takes (inline, spooled), or deferred because the primary takes mail itself.", "road")
	m.roads = [...]prometheus.Counter{mta.Spooled: roads.WithLabelValues("spooled"), mta.Inline: roads.WithLabelValues("inline")}
	m.deferred = roads.WithLabelValues("deferred")
	m.fixed = map[string]*verdictCounters{}
	for _, source := range []string{byAlways, byAcceptAll, byUnknown, byRelay, byLearned} {
		m.fixed[source] = m.counters(source)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.answers, m.looks, m.callouts, judged, roads, m.limited, m.shadows, newAges(p)} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("policy: metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) answer(f finding) {
	counters := m.fixed[f.source]
	if f.by != nil {
		counters = f.by.counters
	}
	counters[f.verdict].Inc()
}

func (m *metrics) look(source, result string) { m.looks.WithLabelValues(source, result).Inc() }
func (m *metrics) callout(result string)      { m.callouts.WithLabelValues(result).Inc() }

// ages tells how old what we know is, at the time of the question.
type ages struct {
	p                               *Policy
	age, recipients, fresh, learned *prometheus.Desc
	list                            *prometheus.Desc
}

func newAges(p *Policy) *ages {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("understudy_policy_"+name, help, labels, nil)
	}
	return &ages{
		p:          p,
		age:        desc("source_age_seconds", "Time since the last good look at a source of recipients. Absent: there was none.", "source"),
		recipients: desc("source_recipients", "Recipients that a source lists.", "source"),
		fresh:      desc("source_fresh", "Whether a source may say that a recipient does not exist.", "source"),
		list:       desc("dns_list_alive", "Whether a DNS list is asked about clients: it passed its last test.", "list"),
		learned:    desc("learned_recipients", "Recipients that the primaries taught us of, by what they said.", "says"),
	}
}

// Describe implements prometheus.Collector.
func (a *ages) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{a.age, a.recipients, a.fresh, a.learned, a.list} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (a *ages) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range a.p.Sources() {
		if s.Age >= 0 {
			gauge(a.age, s.Age.Round(time.Millisecond).Seconds(), s.Name)
		}
		gauge(a.recipients, float64(s.Recipients), s.Name)
		fresh := 0.0
		if s.Fresh {
			fresh = 1
		}
		gauge(a.fresh, fresh, s.Name)
	}
	for _, l := range a.p.Lists() {
		alive := 0.0
		if l.State == dnsbl.Alive {
			alive = 1
		}
		gauge(a.list, alive, l.List)
	}
	good, bad := a.p.learned.sizes()
	gauge(a.learned, float64(good), "exists")
	gauge(a.learned, float64(bad), "missing")
}
