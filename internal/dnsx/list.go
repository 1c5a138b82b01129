package dnsx

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// listTerm is how long an answer of a DNS list holds. Lists give TTLs of seconds, which would have each message of a
// flood ask again, or of days, which would keep a client listed that is long clean.
var listTerm = term{least: time.Minute, most: time.Hour, negative: time.Hour}

// LookupList returns the addresses that a DNS list (RFC 5782) answers a name with. Only A records are asked for, and
// the answer is kept for its TTL, but at least a minute and at most an hour.
func (r *Resolver) LookupList(ctx context.Context, name string) ([]netip.Addr, error) {
	a, err := r.lookupFor(ctx, name, dns.TypeA, listTerm)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, rr := range a.rrs {
		if ip, ok := addrOf(rr); ok {
			addrs = append(addrs, ip)
		}
	}
	return addrs, nil
}
