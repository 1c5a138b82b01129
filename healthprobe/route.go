package healthprobe

import (
	"net/netip"
	"slices"
	"strings"

	"understudy/internal/mta"
)

// candidate is one mail exchanger of a domain, with what is known of its addresses.
type candidate struct {
	host  string
	pref  uint16
	addrs []netip.Addr
}

// self is who we are: a record that leads to us is no primary.
type self struct {
	names []string // in the form of mta.Domain
	addrs []netip.Addr
}

func (s self) is(c candidate) bool {
	if slices.Contains(s.names, c.host) {
		return true
	}
	return slices.ContainsFunc(c.addrs, func(a netip.Addr) bool { return slices.Contains(s.addrs, a) })
}

// choose drops us and what is no better than us (RFC 5321, 5.1), and makes tiers of the rest, best first, each in the
// order of names. listed reports whether we are among the candidates at all.
func choose(cs []candidate, port uint16, me self) (tiers [][]mta.Primary, listed bool) {
	best := 1 << 16
	for _, c := range cs {
		if me.is(c) {
			listed = true
			best = min(best, int(c.pref))
		}
	}
	cs = slices.DeleteFunc(slices.Clone(cs), func(c candidate) bool { return int(c.pref) >= best })
	slices.SortFunc(cs, func(a, b candidate) int {
		if a.pref != b.pref {
			return int(a.pref) - int(b.pref)
		}
		return strings.Compare(a.host, b.host)
	})
	seen := make(map[string]bool)
	last := -1
	for _, c := range cs {
		if seen[c.host] {
			continue
		}
		seen[c.host] = true
		p := mta.Primary{Host: c.host, Port: port}
		if int(c.pref) == last {
			tiers[len(tiers)-1] = append(tiers[len(tiers)-1], p)
			continue
		}
		tiers = append(tiers, []mta.Primary{p})
		last = int(c.pref)
	}
	return tiers, listed
}

// configured makes tiers of the primaries that the config names: each is its own, in the given order.
func configured(names []string) ([][]mta.Primary, error) {
	var tiers [][]mta.Primary
	for _, n := range names {
		p, err := mta.ParsePrimary(n)
		if err != nil {
			return nil, err
		}
		tiers = append(tiers, []mta.Primary{p})
	}
	return tiers, nil
}

// shuffled is a copy of the route with the members of each tier in a random order, which spreads the load (RFC 5321,
// 5.1). Its name stays.
func shuffled(r mta.Route, intn func(int) int) mta.Route {
	tiers := make([][]mta.Primary, len(r.Tiers))
	for i, t := range r.Tiers {
		t = slices.Clone(t)
		for j := len(t) - 1; j > 0; j-- {
			k := intn(j + 1)
			t[j], t[k] = t[k], t[j]
		}
		tiers[i] = t
	}
	return mta.Route{Name: r.Name, Tiers: tiers}
}
