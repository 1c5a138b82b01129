package forwarder

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// kib4 is a message of 4 KiB.
var kib4 = "Subject: drain\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64)

// drain spools n messages of 4 KiB and times how long it takes from opening the gate to an empty spool.
func drain(b *testing.B, n int, addr string, set func(*Config)) {
	to, err := mta.ParsePrimary(addr)
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, "example.org", []mta.Primary{to})
	w.cfg = DefaultConfig()
	w.cfg.Idle = 0
	if set != nil {
		set(&w.cfg)
	}
	w.gates.set(to.String(), false)
	for range n {
		w.put(kib4, "a@example.org")
	}
	w.start()
	start := time.Now()
	w.gates.set(to.String(), true)
	var first time.Duration
	for w.left() > 0 {
		if first == 0 && w.left() < int64(n) {
			first = time.Since(start)
		}
		time.Sleep(time.Millisecond)
		if time.Since(start) > time.Minute {
			b.Fatalf("%d left\n%.2000s", w.left(), w.log.b.String())
		}
	}
	took := time.Since(start)
	b.ReportMetric(float64(n)/took.Seconds(), "msg/s")
	b.ReportMetric(float64(first.Milliseconds()), "ms-to-first")
	b.ReportMetric(0, "ns/op")
	w.stop()
}

// messages is how many a benchmark drains: UNDERSTUDY_DRAIN, or 5000.
func messages() int {
	if n, err := strconv.Atoi(os.Getenv("UNDERSTUDY_DRAIN")); err == nil && n > 0 {
		return n
	}
	return 5000
}

// BenchmarkDrain is run by `make bench-drain`.
func BenchmarkDrain(b *testing.B) {
	for _, rtt := range []time.Duration{0, 100 * time.Millisecond} {
		for _, sessions := range []int{1, 20} {
			b.Run(fmt.Sprintf("sink/rtt=%s/sessions=%d", rtt, sessions), func(b *testing.B) {
				for range b.N {
					p := started(b, func(p *testkit.Primary) { p.Discard = true })
					drain(b, messages(), way(b, p.Addr(), rtt), func(c *Config) { c.Sessions = sessions })
					if p.Accepted() != messages() {
						b.Errorf("%d deliveries", p.Accepted())
					}
				}
			})
		}
	}
	for _, rtt := range []time.Duration{0, 100 * time.Millisecond} {
		for _, sessions := range []int{1, 20} {
			b.Run(fmt.Sprintf("postfix/rtt=%s/sessions=%d", rtt, sessions), func(b *testing.B) {
				for range b.N {
					p := peer.NewPostfix(b, map[string]string{"default_destination_concurrency_limit": "1", "virtual_transport": "discard:"})
					p.Start()
					drain(b, messages()/2, way(b, p.Addr, rtt), func(c *Config) { c.Sessions = sessions })
					p.Stop()
				}
			})
		}
	}
}

func way(b *testing.B, addr string, rtt time.Duration) string {
	if rtt == 0 {
		return addr
	}
	return testkit.NewDelay(b, addr, rtt).Addr()
}
