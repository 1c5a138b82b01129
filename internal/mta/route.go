package mta

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// ErrAway is in the chain of an error that says: no primary of the domain takes mail now, and nothing was handed over.
// What was to be said to it can be judged and kept as if it had been down from the beginning.
var ErrAway = errors.New("no primary takes mail now")

// Primary is one SMTP host that is better than us for a domain. It is comparable, and String is its key.
type Primary struct {
	Host string // a domain name in the form of Domain, or an IP address
	Port uint16
}

// String is "host:port", IPv6 addresses in brackets.
func (p Primary) String() string {
	b := make([]byte, 0, 64)
	if strings.IndexByte(p.Host, ':') >= 0 {
		b = append(append(append(b, '['), p.Host...), ']')
	} else {
		b = append(b, p.Host...)
	}
	return string(strconv.AppendUint(append(b, ':'), uint64(p.Port), 10))
}

// ParsePrimary reads "host", "host:port", "192.0.2.1:25" or "[2001:db8::1]:25"; without a port it is 25.
func ParsePrimary(s string) (Primary, error) {
	host, port := s, uint16(25)
	if h, ps, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(ps, 10, 16)
		if err != nil || n == 0 {
			return Primary{}, &net.AddrError{Err: "port must be 1 to 65535", Addr: s}
		}
		host, port = h, uint16(n)
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" { // it may hold anything, and String is written into logs and metrics
			return Primary{}, &net.AddrError{Err: "address must not have a zone", Addr: s}
		}
		return Primary{Host: a.Unmap().String(), Port: port}, nil
	}
	d, err := Domain(host)
	if err != nil {
		return Primary{}, err
	}
	return Primary{Host: d, Port: port}, nil
}

// Route is where a domain's mail goes: tiers of equal preference, best first. Domains whose tiers are the same share
// a route, its connections and its limits.
type Route struct {
	Name  string      // the same for equal tiers
	Tiers [][]Primary // none: nothing is better than us now, and mail waits
	Held  bool        // an operator holds the drain: what is spooled waits, though the primaries may be up
}

// NewRoute names the route after its tiers.
func NewRoute(tiers [][]Primary) Route {
	var b strings.Builder
	for i, t := range tiers {
		if i > 0 {
			b.WriteByte('|')
		}
		for j, p := range t {
			if j > 0 {
				b.WriteByte(',')
			}
			b.WriteString(p.String())
		}
	}
	return Route{Name: b.String(), Tiers: tiers}
}
