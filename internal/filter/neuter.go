package filter

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"understudy/internal/mta"
)

// Bounds of what a filter may have said in our logs and replies.
const (
	maxText   = 200 // a reply line has 512 octets (RFC 5321, 4.5.3.1.5)
	maxDetail = 400
	maxName   = 64
)

// line makes one line of printable ASCII of at most n octets of what came from outside.
func line(s string, n int) string {
	var b strings.Builder
	blank := true // none at the beginning, and never two
	for _, r := range s {
		if b.Len() >= n {
			break
		}
		switch {
		case r == ' ' || r == '\t' || r == '\r' || r == '\n':
			if !blank {
				b.WriteByte(' ')
			}
			blank = true
			continue
		case r < ' ' || r > '~':
			r = '?'
		}
		b.WriteByte(byte(r))
		blank = false
	}
	return strings.TrimRight(b.String(), " ")
}

// word makes a part of a finding's name: what is not a letter, digit, ".", "_" or "-" becomes "-".
func word(s string) string { return token(s, maxName) }

// token is such a word of at most n octets.
func token(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, strings.TrimSpace(s))
	if len(s) > n {
		s = s[:n]
	}
	if s == "" {
		return "unknown"
	}
	return s
}

// printable puts ? for control characters, so that what a sender chose can't end a line or a string of a protocol.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// plain also puts ? for blanks and for what has a meaning in a Received field: a HELO of "x.(mail[192.0.2.1])" would
// speak for another host.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune("<>()\";@\\`[]{}", r) {
			return '?'
		}
		return r
	}, s)
}

// bracketed is an address as a literal (RFC 5321, 4.1.3).
func bracketed(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}

func plainHelo(helo string) string {
	if a, ok := mta.AddressLiteral(helo); ok {
		return bracketed(a)
	}
	if helo == "" {
		return "?"
	}
	return plain(helo)
}

func plainPath(p mta.Path) string {
	if p.Domain == "" {
		return plain(p.Local)
	}
	if a, ok := mta.AddressLiteral(p.Domain); ok {
		return plain(p.Local) + "@" + bracketed(a)
	}
	return plain(p.Local) + "@" + plain(p.Domain)
}
