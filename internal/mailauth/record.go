package mailauth

import (
	"net/url"
	"strings"
)

// policies are what a DMARC record can ask for, the mildest first.
var policies = []string{"none", "quarantine", "reject"}

// record is a DMARC policy record (RFC 9989, 4.7).
type record struct {
	domain      string // where it stands
	p, sp, np   string // "" where the tag is absent
	psd         byte   // y, n or u
	test        bool
	strictDKIM  bool
	strictSPF   bool
	bad         bool // a policy in it is none of those that there are
	wantsReport bool // it has a place for reports
}

// parseRecord reads a TXT record. It reports false if it is no DMARC record at all. Beyond its version, errors leave
// the default (RFC 9989, 4.8).
func parseRecord(txt string) (*record, bool) {
	tags := strings.Split(txt, ";")
	name, value, _ := strings.Cut(tags[0], "=")
	if !strings.EqualFold(trim(name), "v") || trim(value) != "DMARC1" {
		return nil, false
	}
	r := &record{psd: 'u'}
	seen := map[string]bool{}
	for _, tag := range tags[1:] {
		name, value, _ := strings.Cut(tag, "=")
		name = strings.ToLower(trim(name))
		if seen[name] {
			continue // the first counts
		}
		seen[name] = true
		r.set(name, trim(value))
	}
	return r, true
}

func trim(s string) string { return strings.Trim(s, " \t") }

func (r *record) set(name, value string) {
	lower := strings.ToLower(value)
	switch name {
	case "p":
		r.p = r.policy(lower)
	case "sp":
		r.sp = r.policy(lower)
	case "np":
		r.np = r.policy(lower)
	case "psd":
		if lower == "y" || lower == "n" {
			r.psd = lower[0]
		}
	case "t":
		r.test = lower == "y"
	case "adkim":
		r.strictDKIM = lower == "s"
	case "aspf":
		r.strictSPF = lower == "s"
	case "rua":
		for uri := range strings.SplitSeq(value, ",") {
			u, err := url.Parse(trim(uri))
			r.wantsReport = r.wantsReport || err == nil && u.Scheme != ""
		}
	}
}

func (r *record) policy(s string) string {
	for _, p := range policies {
		if s == p {
			return p
		}
	}
	r.bad = true
	return ""
}

// asks is the policy for a message whose From field has the author's domain; exists tells whether that domain does, and
// is called only where it matters (RFC 9989, 4.10.1). ok is false where DMARC does not apply.
func (r *record) asks(author string, exists func() (bool, error)) (policy string, ok bool, err error) {
	if r.bad {
		return "none", r.wantsReport, nil
	}
	policy = r.p
	if author != r.domain {
		if r.sp != "" {
			policy = r.sp
		}
		if r.np != "" {
			there, err := exists()
			if err != nil {
				return "", false, err
			}
			if !there {
				policy = r.np
			}
		}
	}
	switch {
	case policy == "":
		return "none", true, nil
	case r.test && policy == "reject":
		return "quarantine", true, nil
	case r.test:
		return "none", true, nil
	}
	return policy, true, nil
}
