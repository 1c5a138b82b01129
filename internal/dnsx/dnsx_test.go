package dnsx_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
)

func newResolver(t *testing.T, change func(*dnsx.Config), servers ...string) *dnsx.Resolver {
	t.Helper()
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers = servers
	cfg.Timeout = 200 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var zones = dnstest.Zones{
	"example.org":     {"300 MX 20 mx2.Example.ORG.", "300 MX 10 mx1.example.org.", "TXT \"v=spf1 \" \"-all\"", "TXT \"a\\\"b\\200\""},
	"mx1.example.org": {"A 192.0.2.1", "AAAA 2001:db8::1"},
	"mx2.example.org": {"A 192.0.2.2"},
	"nomail.test":     {"MX 0 ."},
	"mixed.test":      {"MX 0 .", "MX 10 mx1.example.org.", "MX 5 192.0.2.9.", "MX 7 a\\032b.test."},
	"plain.test":      {"A 192.0.2.7"},
	"alias.test":      {"CNAME example.org."},
	"unchased.test":   {"CNAME example.org.", "UNCHASED"},
	"loop.test":       {"CNAME loop2.test.", "UNCHASED"},
	"loop2.test":      {"CNAME loop.test.", "UNCHASED"},
	"dangling.test":   {"CNAME gone.test."},
	"broken.test":     {"SERVFAIL"},
	"refused.test":    {"REFUSED"},
	"silent.test":     {"TIMEOUT"},
	"cut.test":        {"TRUNCATE", "MX 10 mx1.example.org."},
	"old.test":        {"FORMERR", "MX 10 mx1.example.org."},
	"stray.test":      {"STRAY", "MX 10 mx1.example.org."},
	"signed.test":     {"AUTHENTIC", "MX 10 mx1.example.org."},
	"deep.below.test": {"A 192.0.2.8"},
	"a\\ b\\\\c.test": {"TXT \"odd\""},

	"1.2.0.192.in-addr.arpa": {"PTR mx1.example.org."},
	"2.2.0.192.in-addr.arpa": {"PTR mx1.example.org."},
	"3.2.0.192.in-addr.arpa": {"PTR x\\(y\\).test.", "PTR mx2.example.org.", "PTR m3.test."},
	"m3.test":                {"A 192.0.2.3"},
}

func TestLookupMX(t *testing.T) {
	s := dnstest.New(t, zones)
	r := newResolver(t, nil, s.Addr())
	one := []dnsx.MX{{Host: "mx1.example.org", Pref: 10}}
	both := append(slices.Clone(one), dnsx.MX{Host: "mx2.example.org", Pref: 20})
	tests := []struct {
		name, domain string
		want         dnsx.MXs
		err          error // nil in want of "any" is told by temporary
		temporary    bool
	}{
		{name: "sorted by preference, in lower case", domain: "Example.org.", want: dnsx.MXs{Hosts: both, Authentic: false}},
		{name: "null MX", domain: "nomail.test", want: dnsx.MXs{Null: true}},
		{name: "a null MX beside others means nothing, and what is no host name is told", domain: "mixed.test",
			want: dnsx.MXs{Hosts: one, Bad: []string{"192.0.2.9.", `a\ b.test.`}}},
		{name: "an alias is followed", domain: "alias.test", want: dnsx.MXs{Hosts: both}},
		{name: "an alias that the resolver left is followed", domain: "unchased.test", want: dnsx.MXs{Hosts: both}},
		{name: "a truncated answer is asked for over TCP", domain: "cut.test", want: dnsx.MXs{Hosts: one}},
		{name: "a server without EDNS", domain: "old.test", want: dnsx.MXs{Hosts: one}},
		{name: "answers to other questions are no answers", domain: "stray.test", want: dnsx.MXs{Hosts: one}},
		{name: "a loopback resolver is believed that it validated", domain: "signed.test", want: dnsx.MXs{Hosts: one, Authentic: true}},
		{name: "no MX but the name exists", domain: "plain.test", err: dnsx.ErrNoData},
		{name: "an empty name above others exists", domain: "below.test", err: dnsx.ErrNoData},
		{name: "NXDOMAIN", domain: "nowhere.test", err: dnsx.ErrNoName},
		{name: "an alias to nothing", domain: "dangling.test", err: dnsx.ErrNoName},
		{name: "what can't be a name", domain: strings.Repeat("a", 64) + ".test", err: dnsx.ErrNoName},
		{name: "SERVFAIL", domain: "broken.test", temporary: true},
		{name: "REFUSED", domain: "refused.test", temporary: true},
		{name: "no answer", domain: "silent.test", temporary: true},
		{name: "a loop of aliases", domain: "loop.test", temporary: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.LookupMX(t.Context(), tt.domain)
			if tt.temporary || tt.err != nil {
				checkError(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got.Bad)
			if got.TTL <= 0 || got.TTL > 300*time.Second {
				t.Errorf("TTL = %v", got.TTL)
			}
			got.TTL = 0
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", tt.want); g != w {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

// checkError wants the certain error, or with nil one that says "not known now".
func checkError(t *testing.T, err, certain error) {
	t.Helper()
	de, ok := err.(*net.DNSError) // unwrapped: other libraries assert exactly this
	if !ok {
		t.Fatalf("error = %T %v, want a *net.DNSError", err, err)
	}
	if certain == nil {
		if errors.Is(err, dnsx.ErrNotFound) || de.IsNotFound || !de.IsTemporary {
			t.Errorf("error = %v, want a temporary one", err)
		}
		return
	}
	if !errors.Is(err, certain) || !errors.Is(err, dnsx.ErrNotFound) || !de.IsNotFound || de.IsTemporary {
		t.Errorf("error = %v, want %v", err, certain)
	}
}

func TestATruncatedAnswerCostsOneQuestionOverTCP(t *testing.T) {
	s := dnstest.New(t, zones)
	r := newResolver(t, nil, s.Addr())
	if _, err := r.LookupMX(t.Context(), "cut.test"); err != nil || s.Over("udp") != 1 || s.Over("tcp") != 1 {
		t.Errorf("%v, %d over UDP and %d over TCP", err, s.Over("udp"), s.Over("tcp"))
	}
}

func TestLookupHost(t *testing.T) {
	s := dnstest.New(t, zones)
	r := newResolver(t, nil, s.Addr())
	for name, want := range map[string]string{
		"mx1.example.org": "[192.0.2.1 2001:db8::1]",
		"mx2.example.org": "[192.0.2.2]",
		"192.0.2.44":      "[192.0.2.44]",
		"[2001:db8::5]":   "[2001:db8::5]",
		"localhost":       "[127.0.0.1 ::1]",
	} {
		if got, err := r.LookupAddrs(t.Context(), name); err != nil || fmt.Sprint(got) != want {
			t.Errorf("LookupAddrs(%s) = %v, %v, want %s", name, got, err, want)
		}
	}
	_, err := r.LookupAddrs(t.Context(), "example.org")
	checkError(t, err, dnsx.ErrNoData)
	_, err = r.LookupAddrs(t.Context(), "gone.example.org")
	checkError(t, err, dnsx.ErrNoName)
	_, err = r.LookupAddrs(t.Context(), "broken.test")
	checkError(t, err, nil)
}

func TestLookupTXTJoinsAndUnescapes(t *testing.T) {
	s := dnstest.New(t, zones)
	r := newResolver(t, nil, s.Addr())
	got, err := r.LookupTXT(t.Context(), "example.org")
	if want := []string{"v=spf1 -all", "a\"b\xc8"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	got, err = r.LookupTXT(t.Context(), `a b\c.test`)
	if err != nil || !slices.Equal(got, []string{"odd"}) {
		t.Errorf("a name with a blank and a backslash: %q, %v", got, err)
	}
}

func TestConfirmedNameLeadsBackToTheAddress(t *testing.T) {
	s := dnstest.New(t, zones)
	r := newResolver(t, nil, s.Addr())
	for addr, want := range map[string]string{
		"192.0.2.1":        "mx1.example.org",
		"::ffff:192.0.2.1": "mx1.example.org",
		"192.0.2.2":        "",        // claims a name that is another's
		"192.0.2.3":        "m3.test", // the one that is true among several
		"192.0.2.99":       "",
	} {
		if got := r.ConfirmedName(t.Context(), netip.MustParseAddr(addr)); got != want {
			t.Errorf("ConfirmedName(%s) = %q, want %q", addr, got, want)
		}
	}
}

func TestTheNextResolverIsAskedAndTheDeadOneLast(t *testing.T) {
	dead := dnstest.New(t, dnstest.Zones{"example.org": {"TIMEOUT"}, "two.test": {"MX 10 wrong.test."}})
	live := dnstest.New(t, zones)
	r := newResolver(t, nil, dead.Addr(), live.Addr())
	if _, err := r.LookupMX(t.Context(), "example.org"); err != nil {
		t.Fatal(err)
	}
	if dead.Asked("example.org", "MX") != 1 {
		t.Error("the first resolver was not asked first")
	}
	if _, err := r.LookupMX(t.Context(), "plain.test"); !errors.Is(err, dnsx.ErrNoData) {
		t.Errorf("error = %v", err)
	}
	if dead.Asked("plain.test", "MX") != 0 {
		t.Error("a resolver that gave no answer was asked first again")
	}
}

func TestAnswersAreKeptForTheirTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := dnstest.NewMemory(zones)
		r := newResolver(t, func(c *dnsx.Config) { c.Exchange = s.Exchange })
		ask := func(domain string, want int) {
			t.Helper()
			r.LookupMX(t.Context(), domain)
			if got := s.Asked(domain, "MX"); got != want {
				t.Errorf("%s was asked for %d times, want %d", domain, got, want)
			}
		}
		ask("example.org", 1)
		time.Sleep(299 * time.Second)
		ask("example.org", 1)
		time.Sleep(2 * time.Second)
		ask("example.org", 2)
		ask("nowhere.test", 1)
		time.Sleep(29 * time.Second)
		ask("nowhere.test", 1)
		time.Sleep(2 * time.Second)
		ask("nowhere.test", 2)
		ask("broken.test", 2) // two tries
		ask("broken.test", 2)
		time.Sleep(time.Second)
		ask("broken.test", 4)
	})
}

func TestOneQuestionAtATimeIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := dnstest.NewMemory(dnstest.Zones{"example.org": {"TIMEOUT"}})
		r := newResolver(t, func(c *dnsx.Config) { c.Exchange = s.Exchange; c.Tries = 1; c.Timeout = 2 * time.Second })
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := r.LookupMX(impatient, "example.org")
			checkError(t, err, nil)
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				// The first one's impatience must not become the others' answer.
				if _, err := r.LookupMX(t.Context(), "example.org"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		s.Set("example.org", "MX 10 mx.test.")
		wg.Wait()
		if got := s.Asked("example.org", "MX"); got != 2 {
			t.Errorf("asked %d times, want 2", got)
		}
	})
}

func TestTheCacheIsBounded(t *testing.T) {
	s := dnstest.NewMemory(dnstest.Zones{"test": {"A 192.0.2.1"}})
	r := newResolver(t, func(c *dnsx.Config) { c.Exchange = s.Exchange; c.CacheSize = 10 })
	for i := range 200 {
		r.LookupTXT(t.Context(), fmt.Sprintf("n%d.test", i))
	}
	if n := r.Kept(); n > 10 {
		t.Errorf("%d answers are kept, want at most 10", n)
	}
}

func TestValidateReportsAllFaults(t *testing.T) {
	c := dnsx.Config{Resolvers: []string{"127.0.0.1", "[::1]:53", "ns.example.org", "127.0.0.1:0"}, MinTTL: 2, MaxTTL: 1}
	var keys []string
	for _, f := range c.Validate() {
		keys = append(keys, f.Key)
	}
	want := []string{"resolvers[2]", "resolvers[3]", "timeout", "tries", "max_ttl", "cache_size"}
	if !slices.Equal(keys, want) {
		t.Errorf("faults at %q, want %q", keys, want)
	}
	d := dnsx.DefaultConfig()
	if f := d.Validate(); len(f) > 0 {
		t.Errorf("the defaults have faults: %v", f)
	}
}
