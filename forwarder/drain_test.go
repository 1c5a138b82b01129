package forwarder

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"understudy/internal/mta"
	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
	"understudy/spool"
)

// kib4 is a message of 4 KiB.
var kib4 = "Subject: drain\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64)

// messages is how many a benchmark drains: UNDERSTUDY_DRAIN, or 5000.
func messages() int {
	if n, err := strconv.Atoi(os.Getenv("UNDERSTUDY_DRAIN")); err == nil && n > 0 {
		return n
	}
	return 5000
}

// rates reports what a drain took.
func rates(b *testing.B, n int, took, first time.Duration) {
	b.ReportMetric(float64(n)/took.Seconds(), "msg/s")
	b.ReportMetric(float64(first.Milliseconds()), "ms-to-first")
	b.ReportMetric(0, "ns/op")
}

// onDisk opens a spool as the daemon does.
func onDisk(b *testing.B) *spool.Store {
	cfg := spool.DefaultConfig()
	cfg.Dir = b.TempDir()
	s, err := spool.Open(b.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// drain spools n messages of 4 KiB from so many clients, and times how long it takes from opening the gate to an empty
// spool, which is on disk.
func drain(b *testing.B, n, clients int, addr string, set func(*Config)) {
	to, err := mta.ParsePrimary(addr)
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, "example.org", []mta.Primary{to})
	w.cfg = DefaultConfig()
	if set != nil {
		set(&w.cfg)
	}
	w.gates.set(to.String(), false)
	store := onDisk(b)
	w.queue = store
	left := func() int64 {
		u, err := store.Usage(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return u.Messages
	}
	var putting errgroup.Group
	putting.SetLimit(64)
	for i := range n {
		env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "s", Domain: "example.net"},
			Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "a", Domain: "example.org"}, Dest: "example.org"}}}
		if clients > 0 {
			k := i % clients
			env.Peer = mta.Peer{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(k >> 8), byte(k)}), 4000), Helo: "h.example.net", Proto: "ESMTP"}
		}
		putting.Go(func() error { return store.Put(b.Context(), env, strings.NewReader(kib4)) })
	}
	if err := putting.Wait(); err != nil {
		b.Fatal(err)
	}
	w.start()
	start := time.Now()
	w.gates.set(to.String(), true)
	var first time.Duration
	for rest := left(); rest > 0; rest = left() {
		if first == 0 && rest < int64(n) {
			first = time.Since(start)
		}
		time.Sleep(time.Millisecond)
		if time.Since(start) > 2*time.Minute {
			b.Fatalf("%d left\n%.2000s", rest, w.log.b.String())
		}
	}
	rates(b, n, time.Since(start), first)
	w.stop()
}

// postfixDrains times Postfix's drain of the same queue: n messages, deferred, from the moment that its queue is flushed.
func postfixDrains(b *testing.B, n int, to string, accepted func() int) {
	host, port, _ := net.SplitHostPort(to)
	p := peer.NewPostfix(b, map[string]string{"relayhost": "[" + host + "]:" + port, "virtual_mailbox_domains": "", "defer_transports": "smtp"})
	p.Start()
	args := []string{"-m", strconv.Itoa(n), "-s", "20", "-l", "4096", "-f", "s@example.net", "-t", "a@example.org", p.Addr}
	if out, err := exec.Command("smtp-source", args...).CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	p.Reconfigure("defer_transports=")
	time.Sleep(2 * time.Second) // its daemons take the new configuration in
	start := time.Now()
	p.Flush()
	var first time.Duration
	for got := accepted(); got < n; got = accepted() {
		if first == 0 && got > 0 {
			first = time.Since(start)
		}
		time.Sleep(time.Millisecond)
		if time.Since(start) > 5*time.Minute {
			b.Fatalf("%d of %d", got, n)
		}
	}
	rates(b, n, time.Since(start), first)
}

// BenchmarkDrain hands a queue of 4 KiB messages over, to a fast sink and to a real Postfix, next door and over a long
// way; and lets Postfix do the same. It needs Postfix.
func BenchmarkDrain(b *testing.B) {
	peer.Require(b, "postfix", "smtp-source")
	for _, rtt := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(fmt.Sprintf("to=sink/rtt=%s/by=understudy", rtt), func(b *testing.B) { toSink(b, rtt, 0) })
		b.Run(fmt.Sprintf("to=sink/rtt=%s/by=understudy,xclient=1000", rtt), func(b *testing.B) { toSink(b, rtt, 1000) })
		b.Run(fmt.Sprintf("to=sink/rtt=%s/by=postfix", rtt), func(b *testing.B) {
			for range b.N {
				p := started(b, func(p *testkit.Primary) { p.Discard = true })
				postfixDrains(b, messages()/(1+int(rtt/(25*time.Millisecond))), way(b, p.Addr(), rtt), p.Accepted)
			}
		})
		b.Run(fmt.Sprintf("to=postfix/rtt=%s/by=understudy", rtt), func(b *testing.B) { toPostfix(b, rtt, nil) })
		b.Run(fmt.Sprintf("to=postfix/rtt=%s/by=understudy,sessions=1", rtt), func(b *testing.B) {
			toPostfix(b, rtt, func(c *Config) { c.Sessions = 1 })
		})
	}
}

func toSink(b *testing.B, rtt time.Duration, clients int) {
	for range b.N {
		p := started(b, func(p *testkit.Primary) { p.Discard, p.XCLIENT = true, clients > 0 })
		drain(b, messages(), clients, way(b, p.Addr(), rtt), nil)
		if p.Accepted() != messages() {
			b.Errorf("%d deliveries", p.Accepted())
		}
	}
}

func toPostfix(b *testing.B, rtt time.Duration, set func(*Config)) {
	for range b.N {
		p := peer.NewPostfix(b, map[string]string{"virtual_transport": "discard:"})
		p.Start()
		drain(b, messages()/2, 0, way(b, p.Addr, rtt), set)
		p.Stop()
	}
}

func way(b *testing.B, addr string, rtt time.Duration) string {
	if rtt == 0 {
		return addr
	}
	return testkit.NewDelay(b, addr, rtt).Addr()
}
