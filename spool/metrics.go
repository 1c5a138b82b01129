package spool

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the part counts. Without a Registerer they count for nobody.
type metrics struct {
	puts      *prometheus.CounterVec // result: stored, failed
	putTime   prometheus.Histogram
	commits   prometheus.Counter
	commitLen prometheus.Histogram
	syncTime  prometheus.Histogram
	poisoned  prometheus.Counter
	damaged   prometheus.Counter
	moved     prometheus.Counter
	removed   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		puts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_spool_puts_total", Help: "Messages given to the spool, by result (stored, failed).",
		}, []string{"result"}),
		putTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_spool_commit_wait_seconds", Help: "Time from a message's last octet to its being on stable storage.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}),
		commits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_spool_commits_total", Help: "Group commits that reached stable storage.",
		}),
		commitLen: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_spool_commit_writes", Help: "Writes that shared one commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		syncTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_spool_sync_seconds", Help: "Time of one sync of the log to stable storage.",
			Buckets: []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 2},
		}),
		poisoned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_spool_generations_poisoned_total", Help: "Generations left behind after a failed commit.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_spool_damaged_total", Help: "Messages and generations found damaged.",
		}),
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_spool_evacuated_total", Help: "Messages copied out of old generations.",
		}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_spool_generations_removed_total", Help: "Drained generations removed from disk.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.puts, m.putTime, m.commits, m.commitLen, m.syncTime, m.poisoned, m.damaged, m.moved, m.removed)
	}
	return m
}

// watchStore adds what is read off the store when it is asked.
func (m *metrics) watchStore(reg prometheus.Registerer, s *Store) {
	if reg == nil {
		return
	}
	gauge := func(name, help string, f func(u *Usage) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			u := s.glance()
			return f(&u)
		}))
	}
	gauge("understudy_spool_messages", "Messages in the spool.", func(u *Usage) float64 { return float64(u.Messages) })
	gauge("understudy_spool_bytes", "Content of the messages in the spool.", func(u *Usage) float64 { return float64(u.Bytes) })
	gauge("understudy_spool_disk_free_bytes", "Free space of the spool's file system.", func(u *Usage) float64 { return float64(u.DiskFree) })
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "understudy_spool_generations", Help: "Generations on disk.",
	}, func() float64 { return float64(s.generations()) }))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "understudy_spool_ready", Help: "1 if new mail can be stored.",
	}, func() float64 {
		if s.ready() != nil {
			return 0
		}
		return 1
	}))
}
