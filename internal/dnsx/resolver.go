package dnsx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"understudy/internal/mta"
)

// failureTTL is how long trouble is remembered (RFC 9520, 3.2: at least a second), so that a dead resolver is not
// asked anew by every client that waits for it.
const failureTTL = time.Second

// maxNames is how many reverse names of one address are looked at: an address with hundreds is an attack or a mistake.
const maxNames = 5

// Resolver asks the DNS. Any number of goroutines may use it.
type Resolver struct {
	cfg      Config
	exchange Exchange
	servers  *servers
	cache    *cache
}

// New makes a Resolver. It asks nothing yet.
func New(cfg Config) (*Resolver, error) {
	if f := cfg.Validate(); len(f) > 0 {
		return nil, fmt.Errorf("dnsx: %s: %s", f[0].Key, f[0].Text)
	}
	s, err := newServers(cfg.Resolvers)
	if err != nil {
		return nil, fmt.Errorf("dnsx: %w", err)
	}
	r := &Resolver{cfg: cfg, exchange: cfg.Exchange, servers: s, cache: newCache(cfg.CacheSize)}
	if r.exchange == nil {
		r.exchange = exchangeNet
	}
	return r, nil
}

// MX is one mail exchanger.
type MX struct {
	Host string // in the form of mta.Domain
	Pref uint16
}

// MXs is the MX record set of a domain.
type MXs struct {
	Hosts     []MX          // best first
	Null      bool          // the domain says that it takes no mail (RFC 7505)
	Bad       []string      // targets that are no host names, as they were found
	Authentic bool          // validated by DNSSEC
	TTL       time.Duration // how long this holds
}

// LookupMX returns the mail exchangers of a domain. ErrNoData says that the domain exists and has none, so its
// addresses are to be used (RFC 5321, 5.1).
func (r *Resolver) LookupMX(ctx context.Context, domain string) (MXs, error) {
	a, err := r.lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return MXs{}, err
	}
	mxs := MXs{Authentic: a.authentic, TTL: a.ttl}
	for _, rr := range a.rrs {
		mx, ok := rr.(*dns.MX)
		if !ok {
			continue
		}
		if mx.Mx == "." {
			mxs.Null = len(a.rrs) == 1 // beside others it means nothing (RFC 7505, 3)
			continue
		}
		h := host(mx.Mx)
		if _, err := netip.ParseAddr(h); h == "" || err == nil { // an address is no name (RFC 5321, 5.1)
			mxs.Bad = append(mxs.Bad, mx.Mx)
			continue
		}
		mxs.Hosts = append(mxs.Hosts, MX{Host: h, Pref: mx.Preference})
	}
	slices.SortFunc(mxs.Hosts, func(a, b MX) int {
		if a.Pref != b.Pref {
			return int(a.Pref) - int(b.Pref)
		}
		return strings.Compare(a.Host, b.Host)
	})
	return mxs, nil
}

// host gives the form of mta.Domain, or "" for what is no host name.
func host(presentation string) string {
	h, err := mta.Domain(presentation)
	if err != nil {
		return ""
	}
	return h
}

// Host is what a host's name leads to.
type Host struct {
	Addrs     []netip.Addr  // IPv4, then IPv6
	Alias     string        // the name that it is a CNAME of, if it is one
	Authentic bool          // validated by DNSSEC
	TTL       time.Duration // how long this holds
}

// LookupHost returns the addresses of a host. If only one family could be asked for and has addresses, those are the
// answer. An address literal is its own answer, localhost this host (RFC 6761, 6.3).
func (r *Resolver) LookupHost(ctx context.Context, name string) (Host, error) {
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return Host{Addrs: []netip.Addr{a.Unmap()}, TTL: r.cfg.MaxTTL}, nil
	}
	if h := strings.ToLower(strings.TrimSuffix(name, ".")); h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return Host{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, TTL: r.cfg.MaxTTL}, nil
	}
	var v4, v6 answer
	var err4, err6 error
	var wg sync.WaitGroup
	wg.Go(func() { v6, err6 = r.lookup(ctx, name, dns.TypeAAAA) })
	v4, err4 = r.lookup(ctx, name, dns.TypeA)
	wg.Wait()
	return joinFamilies(v4, err4, v6, err6)
}

func joinFamilies(v4 answer, err4 error, v6 answer, err6 error) (Host, error) {
	h := Host{TTL: maxTTL, Authentic: true}
	for _, a := range []answer{v4, v6} {
		for _, rr := range a.rrs {
			if ip, ok := addrOf(rr); ok {
				h.Addrs = append(h.Addrs, ip)
			}
		}
		if len(a.rrs) > 0 {
			h.TTL = min(h.TTL, a.ttl)
			h.Authentic = h.Authentic && a.authentic
			h.Alias = host(a.alias)
		}
	}
	switch {
	case len(h.Addrs) > 0:
		return h, nil
	case err4 != nil && !errors.Is(err4, ErrNotFound):
		return Host{}, err4
	case err6 != nil:
		return Host{}, err6
	}
	return Host{}, err4
}

func addrOf(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		a, ok := netip.AddrFromSlice(rr.A)
		return a.Unmap(), ok
	case *dns.AAAA:
		a, ok := netip.AddrFromSlice(rr.AAAA)
		return a.Unmap(), ok
	}
	return netip.Addr{}, false
}

// LookupAddrs returns the addresses of a host: LookupHost for those who want no more than that.
func (r *Resolver) LookupAddrs(ctx context.Context, name string) ([]netip.Addr, error) {
	h, err := r.LookupHost(ctx, name)
	return h.Addrs, err
}

// LookupTXT returns the text records of a name, the strings of each joined (RFC 7208, 3.3).
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a, err := r.lookup(ctx, name, dns.TypeTXT)
	if err != nil {
		return nil, err
	}
	var txts []string
	for _, rr := range a.rrs {
		if t, ok := rr.(*dns.TXT); ok {
			var b strings.Builder
			for _, s := range t.Txt {
				b.WriteString(unescape(s))
			}
			txts = append(txts, b.String())
		}
	}
	return txts, nil
}

// LookupPTR returns the names that an address claims to have. Anyone can claim any: see ConfirmedName.
func (r *Resolver) LookupPTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	arpa, err := dns.ReverseAddr(addr.Unmap().WithZone("").String())
	if err != nil {
		return nil, &net.DNSError{UnwrapErr: ErrNoName, Err: err.Error(), Name: addr.String(), IsNotFound: true}
	}
	a, err := r.lookup(ctx, arpa, dns.TypePTR)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, rr := range a.rrs {
		if p, ok := rr.(*dns.PTR); ok {
			if h := host(p.Ptr); h != "" {
				names = append(names, h)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// ConfirmedName returns the reverse name of an address, if a name that it claims leads back to it, else "". What it
// returns is letters, digits, hyphens, underscores and dots: safe to stand in a header field.
func (r *Resolver) ConfirmedName(ctx context.Context, addr netip.Addr) string {
	names, err := r.LookupPTR(ctx, addr)
	if err != nil {
		return ""
	}
	for _, n := range names[:min(len(names), maxNames)] {
		if addrs, err := r.LookupAddrs(ctx, n); err == nil && slices.Contains(addrs, addr.Unmap().WithZone("")) {
			return n
		}
	}
	return ""
}

// lookup answers from the cache or asks, at most once at a time for each question.
func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16) (answer, error) {
	return r.lookupFor(ctx, name, qtype, term{r.cfg.MinTTL, r.cfg.MaxTTL, r.cfg.MaxNegativeTTL})
}

// term bounds how long an answer is kept.
type term struct{ least, most, negative time.Duration }

func (r *Resolver) lookupFor(ctx context.Context, name string, qtype uint16, t term) (answer, error) {
	q, ok := newQuestion(name, qtype)
	if !ok {
		return answer{}, notFound(question{name: name, qtype: qtype}, ErrNoName)
	}
	for {
		a, ok, wait := r.cache.get(q, time.Now())
		if ok {
			return a, a.err
		}
		if wait == nil {
			return r.resolve(ctx, q, t)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return answer{}, trouble(q, "", ctx.Err())
		}
	}
}

// resolve asks and keeps the answer. What a caller's own impatience ended is not kept.
func (r *Resolver) resolve(ctx context.Context, q question, t term) (answer, error) {
	var keep *answer
	defer func() { r.cache.done(q, keep, time.Now()) }()
	a, err := r.chase(ctx, q)
	if err != nil {
		if ctx.Err() == nil {
			keep = &answer{err: err, ttl: failureTTL}
		}
		return answer{}, err
	}
	if a.err != nil {
		a.err = notFound(q, a.err)
		a.ttl = min(max(a.ttl, t.least), t.negative)
	} else {
		a.ttl = min(max(a.ttl, t.least), t.most)
	}
	keep = &a
	return a, a.err
}

// chase asks on where a resolver left an alias unresolved.
func (r *Resolver) chase(ctx context.Context, q question) (answer, error) {
	at, alias, authentic, ttl := q, "", true, maxTTL
	for range maxAliases {
		a, more, err := r.askAll(ctx, at)
		if err != nil {
			return answer{}, err
		}
		if a.alias == "" {
			a.alias = alias
		}
		a.authentic = a.authentic && authentic
		if more == "" {
			a.ttl = min(a.ttl, ttl)
			return a, nil
		}
		at, alias, authentic, ttl = question{name: more, qtype: q.qtype}, more, a.authentic, min(ttl, a.ttl)
	}
	return answer{}, trouble(q, "", fmt.Errorf("%w: more than %d aliases", errTrouble, maxAliases))
}

// askAll asks one resolver after the other, until one settles the question.
func (r *Resolver) askAll(ctx context.Context, q question) (a answer, more string, err error) {
	order := r.servers.order(time.Now())
	var last *net.DNSError
	for range r.cfg.Tries {
		for _, s := range order {
			m, err := r.ask(ctx, q, s)
			if err == nil {
				a, more, err = read(q, m)
			}
			if err == nil {
				r.servers.mark(s, true, time.Now())
				r.servers.settled(q.name, true, time.Now())
				return a, more, nil
			}
			last = trouble(q, s.String(), err)
			if ctx.Err() != nil {
				return answer{}, "", last
			}
			r.servers.mark(s, m != nil, time.Now()) // SERVFAIL is the domain's trouble, not the resolver's
		}
	}
	r.servers.settled(q.name, false, time.Now())
	return answer{}, "", last
}

// Silent reports that for a minute or longer no question was settled, of several names: then it is not the domain that
// is asked about whose DNS is in trouble, but ours.
func (r *Resolver) Silent() bool { return r.servers.silent(time.Now()) }
