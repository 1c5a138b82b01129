package inbound

import (
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"understudy/internal/mta"
)

// received is the trace field that we put before a message (RFC 5321, 4.4), in the one shape that SpamAssassin and
// rspamd both read:
//
//	Received: from HELO (NAME [192.0.2.10])
//		by mx2.example.org (Understudy) with ESMTPS id ID
//		(envelope-from <bob@example.net>)
//		for <u@example.org>; date
//
// The primary's filters take the client's address from it, so nothing that the client chose may look like a part of
// that shape: a HELO of "x.(mail.example.net[192.0.2.10])" would otherwise speak for another host.
func received(env *mta.Envelope, hostname string) string {
	var b strings.Builder
	b.Grow(512)
	b.WriteString("Received: from ")
	b.WriteString(neuterHelo(env.Peer.Helo))
	b.WriteString(" (")
	b.WriteString(cmpOr(neuterName(env.Peer.Name), "unknown"))
	b.WriteString(" ")
	b.WriteString(bracketed(env.Peer.Addr.Addr()))
	b.WriteString(")\r\n\tby ")
	b.WriteString(hostname)
	b.WriteString(" (Understudy) with ")
	b.WriteString(env.Peer.Proto)
	b.WriteString(" id ")
	b.WriteString(env.ID.String())
	b.WriteString("\r\n\t(envelope-from <")
	b.WriteString(neuterPath(env.From))
	b.WriteString(">)")
	if len(env.Rcpts) == 1 { // with more, it would tell one recipient of another
		b.WriteString("\r\n\tfor <")
		b.WriteString(neuterPath(env.Rcpts[0].Addr))
		b.WriteString(">")
	}
	b.WriteString("; ")
	b.WriteString(env.Received.Format(time.RFC1123Z))
	b.WriteString("\r\n")
	return b.String()
}

func cmpOr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

// bracketed is an address as a literal (RFC 5321, 4.1.3).
func bracketed(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}

// neuterHelo leaves a valid address literal as it is and takes the meaning from all else.
func neuterHelo(helo string) string {
	if a, ok := mta.AddressLiteral(helo); ok {
		return bracketed(a)
	}
	return cmpOr(neuter(helo, false), "?")
}

// neuterName takes a reverse name only if it is made of letters, digits, hyphens and dots.
func neuterName(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return ""
		}
	}
	return name
}

// neuterPath is a path in which only the @ between local part and domain is left of what could carry meaning.
func neuterPath(p mta.Path) string {
	local := neuter(p.Local, true)
	if p.Domain == "" {
		return local
	}
	if a, ok := mta.AddressLiteral(p.Domain); ok {
		return local + "@" + bracketed(a)
	}
	return local + "@" + neuter(p.Domain, true)
}

// neuter puts ? for each blank, control character and character with a meaning in a header field. Text outside ASCII
// stays only in paths, which can't have it unless the message was declared to.
func neuter(s string, inPath bool) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r <= ' ' || r == 0x7f || r == utf8.RuneError || strings.ContainsRune("<>()\";@\\`[]{}", r):
			return '?'
		case r >= 0x80 && (!inPath || r < 0xa0 || r == 0x2028 || r == 0x2029):
			return '?'
		}
		return r
	}, s)
}
