package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// BenchmarkAccept is what it costs to take mail while the primary is away, durably, 4 KiB a message from 20 sessions of
// smtp-source: by us, by Postfix as a backup MX, and, as the floor, by smtp-sink, which throws it away.
func BenchmarkAccept(b *testing.B) {
	peer.Require(b, "smtp-source", "smtp-sink")
	for _, way := range []struct {
		name string
		args []string
	}{{"reused", []string{"-d"}}, {"one_a_connection", nil}} {
		b.Run(way.name+"/understudy", func(b *testing.B) {
			s := newServer(b, fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}\nlog: {level: warn}\n", peer.FreeAddr(b)))
			s.start()
			source(b, s.smtp, way.args)
			if n := s.waiting(); n < int64(b.N) {
				b.Fatalf("%d messages wait, want %d", n, b.N)
			}
			s.stop()
		})
		b.Run(way.name+"/postfix", func(b *testing.B) {
			p := peer.NewPostfix(b, map[string]string{
				"virtual_mailbox_domains": "", "relay_domains": "example.org", "relay_recipient_maps": "",
				"relayhost": "[127.0.0.1]:" + port(peer.FreeAddr(b)), // nobody listens there: it tries and defers, as a backup MX does
			})
			p.Start()
			source(b, p.Addr, way.args)
		})
		b.Run(way.name+"/sink", func(b *testing.B) {
			addr := peer.FreeAddr(b)
			sink := exec.Command("smtp-sink", "-u", "nobody", addr, "1000")
			if err := sink.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { sink.Process.Kill(); sink.Wait() }()
			until(b, "the sink listens", limit, func() bool { return listens(addr) })
			source(b, addr, way.args)
		})
	}
}

// source sends b.N messages and reports how many a second were taken.
func source(b *testing.B, addr string, more []string) {
	b.Helper()
	args := append([]string{"-s", "20", "-l", "4096", "-m", strconv.Itoa(b.N), "-f", "alice@example.net", "-t", "bob@example.org"}, more...)
	b.ResetTimer()
	if out, err := exec.Command("smtp-source", append(args, addr)...).CombinedOutput(); err != nil {
		b.Fatalf("smtp-source: %v\n%s", err, out)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkInline is the latency of one message, connection and all, as its sender sees it: given to a real Postfix
// directly, and through us while that Postfix is up, with 0 and 20 ms between whoever talks to Postfix and Postfix. Once
// more with a client of its own for each message, whom Postfix is told of by XCLIENT.
func BenchmarkInline(b *testing.B) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		primary := peer.NewPostfix(b, map[string]string{
			"virtual_mailbox_maps": "", "virtual_transport": "discard", "smtpd_authorized_xclient_hosts": "127.0.0.0/8",
			"smtpd_recipient_restrictions": "permit_auth_destination, reject",
		})
		primary.Start()
		addr := primary.Addr
		if rtt > 0 {
			addr = testkit.NewDelay(b, primary.Addr, rtt).Addr()
		}
		plain, told, dns := peer.FreeAddr(b), peer.FreeAddr(b), dnstest.New(b, dnstest.Zones{})
		s := newServer(b, fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}\nlog: {level: warn}\n"+
			"inbound: {listen: [%q, {address: %q, proxy_from: [127.0.0.0/8]}], trusted: [127.0.0.0/8, 198.18.0.0/15]}\ndns: {resolvers: [%q]}\n", addr, plain, told, dns.Addr()))
		s.start()
		s.untilPrimary("up")
		for _, way := range []struct {
			name, addr string
			clients    bool
		}{{"direct", addr, false}, {"through_us", plain, false}, {"through_us_xclient", told, true}} {
			b.Run(fmt.Sprintf("%v/%s", rtt, way.name), func(b *testing.B) {
				took := make([]time.Duration, 0, b.N)
				for n := range b.N {
					client := ""
					if way.clients {
						client = fmt.Sprintf("198.18.%d.%d", n/250%250, 1+n%250)
					}
					took = append(took, roundOnce(b, way.addr, client, n))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
			})
		}
		s.stop()
		primary.Stop()
	}
}

// roundOnce gives one message over a connection of its own and tells how long that took.
func roundOnce(b *testing.B, addr, client string, n int) time.Duration {
	b.Helper()
	start := time.Now()
	c, err := call(addr, client)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if answer, err := c.give("alice@example.net", "bob@example.org", undotted(n)); err != nil || answer[0] != '2' {
		b.Fatal(answer, err)
	}
	c.say("QUIT")
	return time.Since(start)
}
