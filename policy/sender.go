package policy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
)

// senderDomain judges whether the reverse-path could be answered (RFC 5321, 3.6.2; RFC 7505, 4.2).
func senderDomain(ctx context.Context, dns Resolver, from mta.Path) []mta.Finding {
	if from.IsNull() {
		return nil
	}
	if strings.HasPrefix(from.Domain, "[") {
		return []mta.Finding{find("sender:literal", from.Domain)}
	}
	domain := from.DomainKey()
	if domain == "" {
		return nil // <postmaster>, which inbound refuses as a reverse-path where it must
	}
	name := ""
	switch mxs, err := dns.LookupMX(ctx, domain); {
	case err == nil && mxs.Null:
		name = "sender:null-mx"
	case err == nil && len(mxs.Hosts) > 0:
	case err == nil, errors.Is(err, dnsx.ErrNoData):
		name = withoutMX(ctx, dns, domain)
	case errors.Is(err, dnsx.ErrNotFound):
		name = "sender:no-domain"
	default:
		name = "sender:unresolved"
	}
	if name == "" {
		return nil
	}
	f := find(name, domain)
	if name == "sender:unresolved" && dns.Silent() {
		// Nobody's domain is known now. To defer all mail until our resolver is back would help nobody whom it was to keep out:
		// the primary judges once more.
		f.Action, f.Detail = mta.Mark, domain+": no resolver answers"
	}
	return []mta.Finding{f}
}

// withoutMX judges a domain that only its address can speak for (RFC 5321, 5.1).
func withoutMX(ctx context.Context, dns Resolver, domain string) string {
	switch _, err := dns.LookupHost(ctx, domain); {
	case err == nil:
		return ""
	case errors.Is(err, dnsx.ErrNotFound):
		return "sender:no-domain"
	}
	return "sender:unresolved"
}

// spoofed judges a reverse-path in one of our domains: SPF must prove it, or the client must be the domain's own host,
// by its confirmed name or as one of its mail exchangers. Others forge it, or forward without a reverse-path of their
// own, which a domain allows or forbids by its SPF record. A DKIM signature can still prove it later (see judgement.prove).
func spoofed(ctx context.Context, dns Resolver, peer mta.Peer, domain, spf string) []mta.Finding {
	if spf == "pass" || within(peer.Name, domain) {
		return nil
	}
	own, err := exchanges(ctx, dns, domain, peer.Addr.Addr().Unmap().WithZone(""))
	switch {
	case own:
		return nil
	case spf == "temperror" || err != nil && spf != "fail":
		return []mta.Finding{find("spoof:unverified", domain)}
	}
	return []mta.Finding{find("spoof:own-domain", domain)}
}

// exchanges reports an address that mail for a domain, or the domain's own name, leads to. An error says that this is
// not known.
func exchanges(ctx context.Context, dns Resolver, domain string, client netip.Addr) (bool, error) {
	const most = 10 // as many as SPF follows (RFC 7208, 4.6.4)
	hosts := []string{domain}
	mxs, err := dns.LookupMX(ctx, domain)
	for _, mx := range mxs.Hosts {
		hosts = append(hosts, mx.Host)
	}
	var trouble error
	if err != nil && !errors.Is(err, dnsx.ErrNotFound) {
		trouble = err
	}
	for _, h := range hosts[:min(len(hosts), most)] {
		addrs, err := dns.LookupAddrs(ctx, h)
		if slices.Contains(addrs, client) {
			return true, nil
		}
		if err != nil && !errors.Is(err, dnsx.ErrNotFound) {
			trouble = err
		}
	}
	return false, trouble
}
