package mailauth

import (
	"net/netip"
	"strings"

	"understudy/internal/mta"
)

// Fields are the trace fields that go above our Received: Authentication-Results, then Received-SPF, each complete with
// its CRLF. hostname is ours.
func Fields(hostname string, env *mta.Envelope, a mta.Auth) string {
	return AuthenticationResults(hostname, env, a) + ReceivedSPF(hostname, env, a)
}

// AuthenticationResults is the field of RFC 8601, one method a line. Nothing that a client, a message or a zone holds can
// end a value, a line or the field: what is not of the plainest letters is left out or stands as "?".
func AuthenticationResults(hostname string, env *mta.Envelope, a mta.Auth) string {
	var b strings.Builder
	b.WriteString("Authentication-Results: ")
	b.WriteString(clean(hostname))
	add := func(method string, r mta.AuthResult, properties ...string) {
		if r.Result == "" {
			return
		}
		b.WriteString(";\r\n\t" + method + "=" + word(r.Result))
		if r.Result != "pass" && r.Reason != "" && method != "dmarc" {
			b.WriteString(" (" + clean(r.Reason) + ")") // reason="…" is right, too, but rspamd reads no further
		}
		for i := 0; i < len(properties); i += 2 {
			if properties[i+1] != "" {
				b.WriteString("\r\n\t\t" + properties[i] + "=" + properties[i+1])
			}
		}
	}
	n := b.Len()
	// One SPF result only, though the RFC allows both: of several, SpamAssassin believes the one that passed, and anyone
	// has a HELO name that passes. That of the HELO name is in Received-SPF.
	if env.From.IsNull() {
		add("spf", a.SPF, "smtp.helo", plain(a.SPF.Domain))
	} else {
		add("spf", a.SPF, "smtp.mailfrom", mailFrom(env.From))
	}
	for _, k := range a.DKIM {
		add("dkim", k, "header.d", plain(k.Domain), "header.s", plain(k.Selector))
	}
	if len(a.DKIM) == 0 && a.DMARC.Result != "" { // the content was looked at
		add("dkim", mta.AuthResult{Result: "none"})
	}
	add("dmarc", a.DMARC, "policy.dmarc", policyWord(a.DMARC), "header.from", plain(a.DMARC.Domain))
	if b.Len() == n {
		b.WriteString("; none")
	}
	b.WriteString("\r\n")
	return b.String()
}

// policyWord is the policy of the author's domain, where one was found.
func policyWord(r mta.AuthResult) string {
	for _, p := range policies {
		if r.Reason == p {
			return p
		}
	}
	return ""
}

// ReceivedSPF gives the fields of RFC 7208, 9.1, for the HELO name and for the reverse-path; "" if nobody looked.
func ReceivedSPF(hostname string, env *mta.Envelope, a mta.Auth) string {
	var b strings.Builder
	add := func(r mta.AuthResult, identity string) {
		if r.Result == "" {
			return
		}
		b.WriteString("Received-SPF: " + word(r.Result) + " (" + clean(hostname) + ": " + about(r, env.Peer.Addr.Addr()) + ")\r\n\t")
		b.WriteString("receiver=" + clean(hostname) + "; identity=" + identity + "; client-ip=" + addr(env.Peer.Addr.Addr()) + ";\r\n\t")
		b.WriteString(`envelope-from="` + mailFrom(env.From) + `"`)
		if h := plain(domainOf(env.Peer.Helo)); h != "" {
			b.WriteString("; helo=" + h)
		}
		b.WriteString("\r\n")
	}
	if env.From.IsNull() {
		add(a.SPF, "helo")
		return b.String()
	}
	add(a.SPF, "mailfrom")
	add(a.Helo, "helo")
	return b.String()
}

// about says a result of SPF for people.
func about(r mta.AuthResult, client netip.Addr) string {
	domain, ip := clean(r.Domain), addr(client)
	switch r.Result {
	case "pass":
		return domain + " designates " + ip + " as permitted sender"
	case "fail", "softfail":
		return domain + " does not designate " + ip + " as permitted sender"
	case "none", "neutral":
		return domain + " says nothing of " + ip
	}
	return "error in the check of " + domain
}

func addr(a netip.Addr) string { return a.Unmap().WithZone("").String() }

// mailFrom is the reverse-path as it can stand anywhere: without a local part that would need quotes.
func mailFrom(p mta.Path) string {
	domain := plain(p.DomainKey())
	if domain == "" {
		return ""
	}
	if p.Local == "" || len(p.Local) > 128 {
		return domain
	}
	for i := range len(p.Local) {
		if !isPlain(p.Local[i]) && p.Local[i] != '+' {
			return domain
		}
	}
	return p.Local + "@" + domain
}

func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}

// plain is s if it can stand as a token anywhere, or "".
func plain(s string) string {
	if len(s) > 255 {
		return ""
	}
	for i := range len(s) {
		if !isPlain(s[i]) {
			return ""
		}
	}
	return s
}

// word is a result; what is none of the letters is left out.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r
		}
		return -1
	}, s)
}

// clean is a text for people with all meaning taken from it: it can stand in a quoted string, in a comment, in a reply.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x80 && isPlain(byte(r)) || r == ' ' || r == ',' || r == ':' || r == '/' {
			return r
		}
		return '?'
	}, s)
	return s[:min(len(s), 128)]
}
