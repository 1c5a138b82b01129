package healthprobe

import (
	"fmt"
	"net/netip"
	"testing"

	"understudy/internal/mta"
)

func TestChoose(t *testing.T) {
	us := self{names: []string{"mx2.example.org"}, addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}}
	c := func(pref uint16, host string, addrs ...string) candidate {
		x := candidate{host: host, pref: pref}
		for _, a := range addrs {
			x.addrs = append(x.addrs, netip.MustParseAddr(a))
		}
		return x
	}
	tests := []struct {
		name   string
		cs     []candidate
		want   string
		listed bool
	}{
		{"none", nil, "", false},
		{"we and what is worse go", []candidate{c(30, "mx3.example.org"), c(10, "mx1.example.org"), c(20, "mx2.example.org")},
			"mx1.example.org:25", true},
		{"our equals go", []candidate{c(20, "mx4.example.org"), c(10, "mx1.example.org"), c(20, "mx2.example.org")},
			"mx1.example.org:25", true},
		{"we are known by address too", []candidate{c(10, "mx1.example.org", "192.0.2.1"), c(20, "backup.example.net", "2001:db8::9", "2001:db8::2"), c(20, "mx4.example.org")},
			"mx1.example.org:25", true},
		{"our best place counts", []candidate{c(10, "mx1.example.org"), c(20, "mx2.example.org"), c(30, "mx2.example.org"), c(25, "mx4.example.org")},
			"mx1.example.org:25", true},
		{"we are the best", []candidate{c(5, "mx2.example.org"), c(10, "mx1.example.org")}, "", true},
		{"we are the only", []candidate{c(5, "mx2.example.org")}, "", true},
		{"we are not there", []candidate{c(10, "mx1.example.org"), c(20, "mx3.example.org")}, "mx1.example.org:25|mx3.example.org:25", false},
		{"equals are one tier, in the order of names", []candidate{c(10, "b.example.org"), c(20, "mx2.example.org"), c(10, "a.example.org"), c(15, "c.example.org")},
			"a.example.org:25,b.example.org:25|c.example.org:25", true},
		{"a host that stands twice counts once, at its best", []candidate{c(10, "a.example.org"), c(15, "a.example.org")}, "a.example.org:25", false},
		{"preferences at their limits", []candidate{c(65535, "a.example.org"), c(0, "b.example.org")}, "b.example.org:25|a.example.org:25", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tiers, listed := choose(tt.cs, 25, us)
			if got := mta.NewRoute(tiers).Name; got != tt.want || listed != tt.listed {
				t.Errorf("got %q, listed %v; want %q, %v", got, listed, tt.want, tt.listed)
			}
		})
	}
}

func TestEqualsAreShuffledAndTheNameStays(t *testing.T) {
	cs := []candidate{{host: "a.test", pref: 1}, {host: "b.test", pref: 1}, {host: "c.test", pref: 1}, {host: "d.test", pref: 2}}
	tiers, _ := choose(cs, 25, self{})
	r := mta.NewRoute(tiers)
	orders := make(map[string]int)
	seed := 0
	for range 600 {
		s := shuffled(r, func(n int) int { seed = (seed*1103515245 + 12345) & 0x7fffffff; return (seed >> 8) % n })
		if s.Name != r.Name || s.Tiers[1][0].Host != "d.test" {
			t.Fatalf("the route became %+v", s)
		}
		orders[fmt.Sprint(s.Tiers[0])]++
	}
	if len(orders) != 6 {
		t.Errorf("%d of 6 orders came: %v", len(orders), orders)
	}
	if r.Tiers[0][0].Host != "a.test" {
		t.Error("the original was changed")
	}
}
