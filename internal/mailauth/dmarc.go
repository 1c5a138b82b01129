package mailauth

import (
	"context"
	"errors"
	"slices"
	"strings"

	"understudy/internal/mta"
)

// authors holds the domains of the From field against what SPF and DKIM proved. With several, the worst result counts,
// and the message is aligned only if all are.
func (v *Verifier) authors(ctx context.Context, domains []string, auth mta.Auth) (mta.AuthResult, bool) {
	if len(domains) == 0 {
		return mta.AuthResult{Result: "none"}, false
	}
	d := &discovery{ctx: ctx, resolver: v.resolver, method: v.cfg.OrganizationalDomain, asked: map[string]answer{}}
	var worst mta.AuthResult
	all := true
	for i, author := range domains {
		r, aligned := d.evaluate(author, auth)
		all = all && aligned
		if i == 0 || severity(r) > severity(worst) {
			worst = r
		}
	}
	return worst, all
}

func severity(r mta.AuthResult) int {
	switch r.Result {
	case "fail":
		return 3 + slices.Index(policies, r.Reason)
	case "temperror":
		return 2
	case "permerror":
		return 1
	}
	return 0
}

// evaluate is DMARC for one author's domain (RFC 9989, 5.3), and whether SPF or a signature speaks for it.
func (d *discovery) evaluate(author string, auth mta.Auth) (mta.AuthResult, bool) {
	result := func(word, reason string) mta.AuthResult {
		return mta.AuthResult{Result: word, Domain: author, Reason: reason}
	}
	r, err := d.applied(author)
	if err != nil || r == nil {
		same := anyOf(auth, "pass", func(_ bool, domain string) bool { return domain == author })
		if err != nil {
			return result("temperror", "the policy can't be asked for now"), same
		}
		return result("none", ""), same
	}
	aligned, err := d.aligned(author, r, auth, "pass")
	if aligned {
		policy, _, _ := r.asks(author, func() (bool, error) { return true, nil })
		return result("pass", policy), true
	}
	if err == nil {
		err = d.doubt(author, r, auth)
	}
	if err != nil {
		return result("temperror", err.Error()), false
	}
	policy, applies, err := r.asks(author, func() (bool, error) { return d.exists(author) })
	switch {
	case err != nil:
		return result("temperror", errSilent.Error()), false
	case !applies:
		return result("permerror", "the record names no policy"), false
	}
	return result("fail", policy), false
}

// Why a message that did not pass has not failed (RFC 9989, 5.3.6).
var (
	errSilent  = errors.New("the DNS gave no answer")
	errHalfway = errors.New("SPF was not looked at") // half of the evidence proves no fraud
)

// doubt is that what could have spoken for the author was not to be known.
func (d *discovery) doubt(author string, r *record, auth mta.Auth) error {
	if auth.SPF.Result == "" {
		return errHalfway
	}
	unsure, err := d.aligned(author, r, auth, "temperror")
	if unsure || err != nil {
		return errSilent
	}
	return nil
}

// anyOf reports whether a domain with that result, of SPF or of a signature, meets the condition.
func anyOf(auth mta.Auth, result string, is func(bySPF bool, domain string) bool) bool {
	if auth.SPF.Result == result && auth.SPF.Domain != "" && is(true, auth.SPF.Domain) {
		return true
	}
	for _, k := range auth.DKIM {
		if k.Result == result && k.Domain != "" && is(false, k.Domain) {
			return true
		}
	}
	return false
}

// aligned reports whether an identifier with that result speaks for the author (RFC 9989, 4.4). The error is that a
// question on the way had no answer, and no other identifier was enough.
func (d *discovery) aligned(author string, r *record, auth mta.Auth, result string) (bool, error) {
	if anyOf(auth, result, func(_ bool, domain string) bool { return domain == author }) {
		return true, nil
	}
	if r.strictSPF && r.strictDKIM || !anyOf(auth, result, func(bool, string) bool { return true }) {
		return false, nil
	}
	org, _, err := d.organizational(author)
	if err != nil {
		return false, errSilent
	}
	var failed error
	ok := anyOf(auth, result, func(bySPF bool, domain string) bool {
		if bySPF && r.strictSPF || !bySPF && r.strictDKIM || !within(domain, org) {
			return false
		}
		other, _, err := d.organizational(domain)
		if err != nil {
			failed = errSilent
			return false
		}
		return other == org
	})
	if ok {
		return true, nil
	}
	return false, failed
}

// within reports a domain that is parent or below it.
func within(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// dmarcFindings are what DMARC says against a message, with the weights that hold unless a domain says otherwise. A
// policy of none changes nothing (RFC 9989, 5.4).
func dmarcFindings(r mta.AuthResult) []mta.Finding {
	if r.Result != "fail" {
		return nil
	}
	f := mta.Finding{Text: "DMARC: this is not from " + clean(r.Domain), Status: "7.1"}
	switch r.Reason {
	case "reject":
		f.Name, f.Weight, f.Action = "dmarc:reject", 8, mta.Reject
	case "quarantine":
		f.Name, f.Weight, f.Action = "dmarc:quarantine", 5, mta.Mark
	default:
		f.Name = "dmarc:none-fail"
	}
	return []mta.Finding{f}
}
