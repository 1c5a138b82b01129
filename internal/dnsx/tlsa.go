package dnsx

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/miekg/dns"
)

// TLSA is one record of how a server's certificate may be known (RFC 6698, 2.1).
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// LookupTLSA returns the TLSA records of a host's TCP port. authentic says that a resolver whose word we take has
// validated the answer; without that the records are worth nothing (RFC 7672, 2.1). For a name without records, the
// error says so, and authentic whether that much is certain.
func (r *Resolver) LookupTLSA(ctx context.Context, host string, port uint16) (records []TLSA, authentic bool, err error) {
	a, err := r.lookup(ctx, fmt.Sprintf("_%d._tcp.%s", port, host), dns.TypeTLSA)
	if err != nil {
		return nil, a.authentic, err
	}
	for _, rr := range a.rrs {
		t, ok := rr.(*dns.TLSA)
		if !ok {
			continue
		}
		data, err := hex.DecodeString(t.Certificate)
		if err != nil {
			continue // the library made it of octets
		}
		records = append(records, TLSA{Usage: t.Usage, Selector: t.Selector, Matching: t.MatchingType, Data: data})
	}
	return records, a.authentic, nil
}
