package mailauth

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/net/publicsuffix"

	"understudy/internal/dnsx"
)

// discovery finds DMARC records for one message, each name asked once.
type discovery struct {
	ctx      context.Context
	resolver Resolver
	method   OrganizationalDomain
	asked    map[string]answer
}

type answer struct {
	record *record // nil: there is none
	err    error   // not known now
}

// record is the one at a domain, or nil.
func (d *discovery) record(domain string) (*record, error) {
	a, ok := d.asked[domain]
	if !ok {
		a.record, a.err = d.ask(domain)
		d.asked[domain] = a
	}
	return a.record, a.err
}

func (d *discovery) ask(domain string) (*record, error) {
	txts, err := d.resolver.LookupTXT(d.ctx, "_dmarc."+domain)
	if errors.Is(err, dnsx.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found *record
	for _, txt := range txts {
		r, ok := parseRecord(txt)
		if !ok {
			continue
		}
		if found != nil { // of several, none counts
			return nil, nil
		}
		r.domain, found = domain, r
	}
	return found, nil
}

// exists reports whether anything at all has the name (RFC 9989, 3.2.13; RFC 8020).
func (d *discovery) exists(domain string) (bool, error) {
	_, err := d.resolver.LookupTXT(d.ctx, domain)
	if errors.Is(err, dnsx.ErrNoName) {
		return false, nil
	}
	if errors.Is(err, dnsx.ErrNotFound) {
		return true, nil
	}
	return err == nil, err
}

// targets are the names that a tree walk from a domain asks for, at most eight (RFC 9989, 4.10).
func targets(domain string) []string {
	list := []string{domain}
	labels := strings.Split(domain, ".")
	for n := min(len(labels)-1, 7); n > 0; n-- {
		list = append(list, strings.Join(labels[len(labels)-n:], "."))
	}
	return list
}

// organizational is the domain's organizational domain, and the record of a public suffix domain that was found on the
// way (RFC 9989, 4.10.2).
func (d *discovery) organizational(domain string) (org string, suffix *record, err error) {
	if d.method == PublicSuffix {
		org, err := publicsuffix.EffectiveTLDPlusOne(domain)
		if err != nil {
			return domain, nil, nil // it is a suffix itself
		}
		return org, nil, nil
	}
	org = domain
	for i, at := range targets(domain) {
		r, err := d.record(at)
		switch {
		case err != nil:
			return "", nil, err
		case r == nil:
		case r.psd == 'n':
			return at, nil, nil
		case r.psd == 'y' && i > 0:
			return child(domain, at), r, nil
		case r.psd == 'y':
			return at, nil, nil // it has mail of its own
		default:
			org = at
		}
	}
	return org, nil, nil
}

// child is the name one label below parent on the way to domain.
func child(domain, parent string) string {
	rest := strings.TrimSuffix(domain, "."+parent)
	return rest[strings.LastIndexByte(rest, '.')+1:] + "." + parent
}

// applied is the record that holds for an author's domain: its own, that of its organizational domain, or that of the
// public suffix domain above (RFC 9989, 4.10.1). nil: there is none.
func (d *discovery) applied(author string) (*record, error) {
	r, err := d.record(author)
	if err != nil || r != nil {
		return r, err
	}
	org, suffix, err := d.organizational(author)
	if err != nil {
		return nil, err
	}
	if d.method == PublicSuffix {
		return d.record(org)
	}
	if r := d.asked[org].record; r != nil { // what the walk leapt over was not asked for
		return r, nil
	}
	return suffix, nil
}
