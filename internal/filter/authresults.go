package filter

import (
	"strings"

	"understudy/internal/mta"
)

const maxDomain = 255 // RFC 5321, 4.5.3.1.2

// authResults is the value of an Authentication-Results field (RFC 8601) for milters that judge by it, such as
// OpenDMARC's, which would find the results of another milter there; empty if nobody looked.
func authResults(hostname string, a *mta.Auth) string {
	var b strings.Builder
	add := func(method string, r mta.AuthResult, properties ...string) {
		if r.Result == "" {
			return
		}
		b.WriteString(";\n\t" + method + "=" + word(r.Result))
		for i := 0; i+1 < len(properties); i += 2 {
			if properties[i+1] != "" {
				b.WriteString(" " + properties[i] + "=" + token(properties[i+1], maxDomain))
			}
		}
	}
	add("spf", a.SPF, "smtp.mailfrom", a.SPF.Domain)
	add("spf", a.Helo, "smtp.helo", a.Helo.Domain)
	for _, d := range a.DKIM {
		add("dkim", d, "header.d", d.Domain, "header.s", d.Selector)
	}
	add("dmarc", a.DMARC, "header.from", a.DMARC.Domain)
	if b.Len() == 0 {
		return ""
	}
	return plain(hostname) + b.String()
}
