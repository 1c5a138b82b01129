package healthprobe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
	"understudy/internal/testkit"
)

// journal collects events.
type journal struct {
	mu   sync.Mutex
	list []mta.Event
}

func (j *journal) add(e mta.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, e)
}

// lines are the events as "kind level subject".
func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var ls []string
	for _, e := range j.list {
		ls = append(ls, strings.TrimSpace(fmt.Sprintf("%s %v %s", e.Kind, e.Level, e.Subject)))
	}
	return ls
}

func (j *journal) has(line string) bool { return slices.Contains(j.lines(), line) }

// dnsWorld is a DNS over real sockets, a primary that all names lead to, and a prober that looks often.
type dnsWorld struct {
	dns    *dnstest.Server
	events journal
	tables tables
	p      *Prober
}

func newDNSWorld(t *testing.T, z dnstest.Zones) *dnsWorld {
	t.Helper()
	primary := testkit.NewPrimary(t)
	primary.Start()
	w := &dnsWorld{dns: dnstest.New(t, z)}
	w.p = w.prober(t, primary.Primary().Port)
	run(t, w.p)
	return w
}

func (w *dnsWorld) prober(t *testing.T, port uint16) *Prober {
	cfg := DefaultConfig()
	cfg.RouteMinTTL = 10 * time.Millisecond
	cfg.MXPort = port
	return prepare(t, cfg, map[string]Domain{"example.org": {}}, Deps{
		Resolver: resolver(t, w.dns), Events: w.events.add, Tables: &w.tables,
	})
}

// route waits for a route with these hosts, tiers separated by bars.
func (w *dnsWorld) route(t *testing.T, want string) {
	t.Helper()
	await(t, w.p, "route "+want, func() bool {
		d, ok := w.p.Domain("example.org")
		return ok && d.Trouble == "" && hosts(d.Tiers) == want && w.p.known("example.org")
	})
	r, err := w.p.Route(t.Context(), "example.org")
	if err != nil || (len(r.Tiers) == 0) != (want == "") {
		t.Errorf("Route = %+v, %v", r, err)
	}
}

func (p *Prober) known(domain string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.domains[domain].known
}

func hosts(tiers [][]string) string {
	var ts []string
	for _, tier := range tiers {
		var hs []string
		for _, p := range tier {
			h, _, _ := strings.Cut(p, ":")
			hs = append(hs, h)
		}
		ts = append(ts, strings.Join(hs, ","))
	}
	return strings.Join(ts, "|")
}

func (w *dnsWorld) note(t *testing.T, part string) {
	t.Helper()
	d, _ := w.p.Domain("example.org")
	if !slices.ContainsFunc(d.Notes, func(n string) bool { return strings.Contains(n, part) }) {
		t.Errorf("notes are %q, none says %q", d.Notes, part)
	}
}

// usual is a domain with two primaries and us.
func usual(more dnstest.Zones) dnstest.Zones {
	z := dnstest.Zones{
		"example.org":     {"0 MX 10 mx1.example.org.", "0 MX 20 mx2.example.org.", "0 MX 30 mx3.example.org."},
		"mx1.example.org": {"0 A 127.0.0.1"},
		"mx2.example.org": {"0 A 192.0.2.2"},
		"mx3.example.org": {"0 A 192.0.2.3"},
	}
	for name, rrs := range more {
		z[name] = rrs
	}
	return z
}

func TestRoutesFromTheDNS(t *testing.T) {
	tests := []struct {
		name  string
		zones dnstest.Zones
		want  string
		note  string
		event string
	}{
		{name: "what is better than us", want: "mx1.example.org"},
		{name: "equals", zones: dnstest.Zones{
			"example.org":     {"MX 10 mx1.example.org.", "MX 10 mx0.example.org.", "MX 15 mx4.example.org.", "MX 20 mx2.example.org."},
			"mx0.example.org": {"A 127.0.0.1"}, "mx4.example.org": {"A 127.0.0.1"}}, want: "mx0.example.org,mx1.example.org|mx4.example.org"},
		{name: "a truncated answer", zones: dnstest.Zones{"example.org": {"TRUNCATE", "MX 10 mx1.example.org.", "MX 20 mx2.example.org."}}, want: "mx1.example.org"},
		{name: "an alias as mail exchanger is used and reported", zones: dnstest.Zones{
			"mx1.example.org": {"CNAME real.example.net."}, "real.example.net": {"A 127.0.0.1"}},
			want: "mx1.example.org", note: "mx1.example.org is an alias of real.example.net"},
		{name: "an alias that leads to us is us", zones: dnstest.Zones{
			"example.org":       {"MX 10 mx1.example.org.", "MX 20 other.example.org."},
			"other.example.org": {"CNAME mx2.example.org."}}, want: "mx1.example.org"},
		{name: "a domain that is an alias", zones: dnstest.Zones{
			"example.org": {"CNAME example.net."}, "example.net": {"MX 10 mx1.example.org.", "MX 20 mx2.example.org."}}, want: "mx1.example.org"},
		{name: "no MX: the domain's own address", zones: dnstest.Zones{"example.org": {"A 127.0.0.1"}}, want: "example.org",
			note: "no MX records", event: "mx_role_lost alarm example.org"},
		{name: "no MX, and the address is ours", zones: dnstest.Zones{"example.org": {"A 192.0.2.2"}}, want: "",
			event: "no_primary alarm example.org"},
		{name: "null MX", zones: dnstest.Zones{"example.org": {"MX 0 ."}}, want: "", note: "RFC 7505", event: "no_primary alarm example.org"},
		{name: "we are the best", zones: dnstest.Zones{"example.org": {"MX 10 mx1.example.org.", "MX 5 mx2.example.org."}}, want: "",
			note: "no mail exchanger is better", event: "no_primary alarm example.org"},
		{name: "we are missing", zones: dnstest.Zones{"example.org": {"MX 10 mx1.example.org.", "MX 30 mx3.example.org."}},
			want: "mx1.example.org|mx3.example.org", note: "not among", event: "mx_role_lost alarm example.org"},
		{name: "a mail exchanger without address is reported", zones: dnstest.Zones{"mx1.example.org": {"TXT x"}}, want: "mx1.example.org", note: "has no address"},
		{name: "the addresses of one can't be looked up", zones: dnstest.Zones{"mx1.example.org": {"SERVFAIL"}}, want: "mx1.example.org", note: "can't be looked up"},
		{name: "the domain does not exist", zones: dnstest.Zones{"example.org": nil, "mx1.example.org": nil, "mx2.example.org": nil, "mx3.example.org": nil}, want: "",
			note: "does not exist", event: "no_primary alarm example.org"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := usual(tt.zones)
			for name, rrs := range z {
				if rrs == nil {
					delete(z, name)
				}
			}
			w := newDNSWorld(t, z)
			w.route(t, tt.want)
			if tt.note != "" {
				w.note(t, tt.note)
			}
			if got := strings.Join(w.events.lines(), ", "); tt.event != "" && !strings.Contains(got, tt.event) ||
				tt.event == "" && (strings.Contains(got, "role") || strings.Contains(got, "no_primary")) {
				t.Errorf("events are %q, want %q", got, tt.event)
			}
		})
	}
}

func TestTheDNSInTroubleLosesNoRoute(t *testing.T) {
	for _, fault := range []string{"SERVFAIL", "REFUSED", "TIMEOUT", "NXDOMAIN"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			w := newDNSWorld(t, usual(nil))
			w.route(t, "mx1.example.org")
			for _, name := range []string{"example.org", "mx1.example.org", "mx2.example.org", "mx3.example.org"} {
				if fault == "NXDOMAIN" {
					w.dns.Set(name)
				} else {
					w.dns.Set(name, fault)
				}
			}
			await(t, w.p, "trouble", func() bool {
				w.p.Hint("example.org")
				d, _ := w.p.Domain("example.org")
				return d.Trouble != "" || slices.ContainsFunc(d.Notes, func(n string) bool { return strings.Contains(n, "last known primaries are kept") })
			})
			r, err := w.p.Route(t.Context(), "example.org")
			if err != nil || len(r.Tiers) != 1 {
				t.Errorf("Route = %+v, %v", r, err)
			}
			if fault != "NXDOMAIN" {
				if a, err := w.p.LookupAddrs(t.Context(), "mx1.example.org"); err != nil || fmt.Sprint(a) != "[127.0.0.1]" {
					t.Errorf("the primary's addresses are %v, %v", a, err)
				}
			}
		})
	}
}

func TestARouteFollowsTheDNS(t *testing.T) {
	w := newDNSWorld(t, usual(dnstest.Zones{"mx9.example.org": {"0 A 127.0.0.1"}}))
	w.route(t, "mx1.example.org")
	w.dns.Set("example.org", "0 MX 5 mx9.example.org.", "0 MX 20 mx2.example.org.")
	w.route(t, "mx9.example.org")
	await(t, w.p, "only mx9", func() bool {
		s := w.p.Status()
		return len(s) == 1 && strings.HasPrefix(s[0].Primary, "mx9.example.org:") && s[0].Open
	})
	w.dns.Set("example.org", "0 MX 20 mx2.example.org.")
	w.route(t, "")
	await(t, w.p, "alarm", func() bool { return w.events.has("no_primary alarm example.org") })
	w.dns.Set("example.org", "0 MX 10 mx1.example.org.", "0 MX 20 mx2.example.org.")
	w.route(t, "mx1.example.org")
	await(t, w.p, "end of the alarm", func() bool { return w.events.has("no_primary over example.org") })
}

func TestAfterARestartWithoutDNSTheLastRouteHolds(t *testing.T) {
	primary := testkit.NewPrimary(t)
	primary.Start()
	w := &dnsWorld{dns: dnstest.New(t, usual(dnstest.Zones{"mx1.example.org": {"0 A 127.0.0.1"}}))}
	w.p = w.prober(t, primary.Primary().Port)
	stop := run(t, w.p)
	w.route(t, "mx1.example.org")
	stop()
	w.dns.Set("example.org", "TIMEOUT")
	w.p = w.prober(t, primary.Primary().Port)
	run(t, w.p)
	await(t, w.p, "up", func() bool { s := w.p.Status(); return len(s) == 1 && s[0].Open })
	r, err := w.p.Route(t.Context(), "example.org")
	if err != nil || len(r.Tiers) != 1 || r.Tiers[0][0].Host != "mx1.example.org" {
		t.Errorf("Route = %+v, %v", r, err)
	}
	w.dns.Set("example.org", "0 MX 20 mx2.example.org.", "0 MX 30 mx1.example.org.")
	w.route(t, "")
}

func TestWithoutAnyAnswerARouteIsATemporaryError(t *testing.T) {
	w := newDNSWorld(t, usual(dnstest.Zones{"example.org": {"SERVFAIL"}}))
	_, err := w.p.Route(t.Context(), "example.org")
	if _, ok := errors.AsType[*mta.Reply](err); err == nil || ok {
		t.Errorf("error = %v, want one without a reply", err)
	}
	w.dns.Set("example.org", "0 MX 10 mx1.example.org.", "0 MX 20 mx2.example.org.")
	w.route(t, "mx1.example.org")
}

func TestForeignDomains(t *testing.T) {
	w := newDNSWorld(t, usual(dnstest.Zones{
		"foreign.test": {"MX 10 mx1.example.org."}, "nomail.test": {"MX 0 ."}, "ours.test": {"MX 10 mx2.example.org."}, "broken.test": {"SERVFAIL"},
	}))
	r, err := w.p.Route(t.Context(), "foreign.test")
	if err != nil || len(r.Tiers) != 1 || !w.p.Open("192.0.2.200:25") {
		t.Errorf("Route = %+v, %v", r, err)
	}
	for domain, want := range map[string]string{"nomail.test": "5.1.10", "nowhere.test": "5.1.2", "ours.test": "5.1.2", "broken.test": ""} {
		_, err := w.p.Route(t.Context(), domain)
		reply, _ := errors.AsType[*mta.Reply](err)
		if err == nil || reply == nil != (want == "") || reply != nil && reply.Enhanced != want {
			t.Errorf("Route(%s): %v, want %s", domain, err, want)
		}
	}
}

func TestAPrimaryThatConnectsToUsIsProbed(t *testing.T) {
	primary := testkit.NewPrimary(t)
	primary.Start()
	primary.Stop()
	cfg := DefaultConfig()
	cfg.EveryDown = time.Hour
	p := start(t, cfg, map[string]Domain{"example.org": {Primaries: []string{primary.Addr()}}}, Deps{})
	await(t, p, "down", func() bool { return p.state(primary.Addr()) == Down })
	primary.Start()
	p.HintFrom(netip.MustParseAddr("192.0.2.99")) // a stranger
	p.HintFrom(netip.MustParseAddr("::ffff:127.0.0.1"))
	await(t, p, "up", func() bool { return p.Open(primary.Addr()) })
}
