package healthprobe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
)

const (
	retryKnown   = 15 * time.Second // after trouble with the DNS, while the last good answer holds
	retryUnknown = 2 * time.Second  // while there is none
	maxHosts     = 30               // mail exchangers of a domain that are looked at
)

// Resolver is what is asked of the DNS. *dnsx.Resolver fits.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) (dnsx.MXs, error)
	LookupHost(ctx context.Context, name string) (dnsx.Host, error)
}

// domain is a configured mail domain. Prober.mu guards it.
type domain struct {
	slot
	name     string
	cfg      Domain
	route    mta.Route
	known    bool      // route holds, be it without tiers
	notes    []string  // what is odd about it, in words
	err      error     // why the last lookup brought nothing
	found    time.Time // when route was found; zero for a configured one
	running  bool      // a lookup is on its way
	dropped  bool      // no longer configured
	fromConf bool

	keptName string // the route that is written down
	keptAt   time.Time

	noneAlarm, roleAlarm bool // raised
}

// finding is what the DNS says about a domain's primaries.
type finding struct {
	tiers  [][]mta.Primary
	addrs  map[string][]netip.Addr // of each mail exchanger
	listed bool                    // we are among its mail exchangers
	none   string                  // why nothing takes its mail, if the DNS says so: "it does not exist"
	gone   bool                    // none, because the name does not exist
	null   bool                    // none, because of a null MX
	notes  []string
	ttl    time.Duration
}

// find looks up the primaries of a domain. An error means that they are not known now.
func (p *Prober) find(ctx context.Context, name string) (finding, error) {
	f := finding{ttl: p.routeMaxTTL()}
	mxs, err := p.deps.Resolver.LookupMX(ctx, name)
	switch {
	case errors.Is(err, dnsx.ErrNoName):
		f.none, f.gone, f.ttl = "the domain does not exist in the DNS", true, 0 // soon again: the resolver knows how long it holds
		f.notes = []string{f.none}
		return f, nil
	case errors.Is(err, dnsx.ErrNotFound): // its addresses are its mail exchanger (RFC 5321, 5.1)
		mxs = dnsx.MXs{Hosts: []dnsx.MX{{Host: name}}}
		f.notes = append(f.notes, "it has no MX records: its own addresses are used")
	case err != nil:
		return finding{}, err
	case mxs.Null:
		f.none, f.null, f.ttl = "its MX record says that it takes no mail (RFC 7505)", true, mxs.TTL
		f.notes = []string{f.none}
		return f, nil
	}
	f.ttl = min(f.ttl, mxs.TTL)
	for _, b := range mxs.Bad {
		f.notes = append(f.notes, fmt.Sprintf("the MX target %s is no host name", b))
	}
	cs := p.candidates(ctx, mxs.Hosts, &f)
	f.tiers, f.listed = choose(cs, p.mxPort(), p.self())
	switch {
	case len(f.tiers) == 0 && f.listed:
		f.none = "no mail exchanger is better than this host"
		f.notes = append(f.notes, f.none)
	case len(f.tiers) == 0:
		f.none = "it has no usable mail exchanger"
		f.notes = append(f.notes, f.none)
	case !f.listed:
		f.notes = append(f.notes, "this host is not among its mail exchangers")
	}
	return f, nil
}

// candidates looks up the addresses of the hosts, which tell us whether one of them is this host under another name.
func (p *Prober) candidates(ctx context.Context, hosts []dnsx.MX, f *finding) []candidate {
	if len(hosts) > maxHosts {
		f.notes = append(f.notes, fmt.Sprintf("only the best %d of its %d mail exchangers are used", maxHosts, len(hosts)))
		hosts = hosts[:maxHosts]
	}
	cs := make([]candidate, 0, len(hosts))
	f.addrs = make(map[string][]netip.Addr)
	for _, mx := range hosts {
		h, err := p.lookupHost(ctx, mx.Host)
		switch {
		case errors.Is(err, dnsx.ErrNotFound):
			f.notes = append(f.notes, fmt.Sprintf("the mail exchanger %s has no address", mx.Host))
		case err != nil:
			f.ttl = min(f.ttl, retryKnown)
			f.notes = append(f.notes, fmt.Sprintf("the addresses of %s can't be looked up now", mx.Host))
		default:
			f.ttl = min(f.ttl, h.TTL)
			f.addrs[mx.Host] = h.Addrs
		}
		if h.Alias != "" {
			f.notes = append(f.notes, fmt.Sprintf("the mail exchanger %s is an alias of %s (RFC 5321, 5.1 forbids it)", mx.Host, h.Alias))
		}
		cs = append(cs, candidate{host: mx.Host, pref: mx.Pref, addrs: h.Addrs})
	}
	return cs
}

// learn takes what a lookup brought, and returns the route that follows from it, if that is another than before. It
// keeps what it knew where the DNS is in trouble, and where the whole domain vanished, which is an accident more often
// than a wish.
func (d *domain) learn(f finding, err error, now time.Time) (route mta.Route, changed bool) {
	d.err = err
	if err != nil {
		return mta.Route{}, false
	}
	d.notes, d.found = f.notes, now
	if f.gone && d.known && len(d.route.Tiers) > 0 {
		d.notes = append(d.notes, "its last known primaries are kept")
		return mta.Route{}, false
	}
	route = mta.NewRoute(f.tiers)
	changed = !d.known || route.Name != d.route.Name
	d.known = true
	return route, changed
}

// again is how long what was learned holds.
func (d *domain) again(f finding, least, most time.Duration) time.Duration {
	switch {
	case d.err != nil && !d.known:
		return retryUnknown
	case d.err != nil:
		return retryKnown
	}
	return min(max(f.ttl, least), most)
}

// primaries goes through the route's members.
func primaries(r mta.Route) iter.Seq[mta.Primary] {
	return func(yield func(mta.Primary) bool) {
		for _, tier := range r.Tiers {
			for _, m := range tier {
				if !yield(m) {
					return
				}
			}
		}
	}
}

// book is the last good addresses of a primary's host.
type book struct {
	watches []*watch
	addrs   []netip.Addr
}
