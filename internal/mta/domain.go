package mta

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxDomain is the most octets that a domain may have (RFC 5321, 4.5.3.1.2).
const maxDomain = 255

// Domain gives the one form under which a domain is compared, looked up and stored: A-labels (RFC 5890), lower case,
// no trailing dot. Both forms of an internationalised name give the same.
func Domain(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if isDomain(s) {
		return s, nil
	}
	if s == "" {
		return "", fmt.Errorf("domain is empty")
	}
	if len(s) > maxDomain {
		return "", fmt.Errorf("domain is longer than %d octets", maxDomain)
	}
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("domain %q is not UTF-8", s)
	}
	if !isASCII(s) || strings.Contains(strings.ToLower(s), "xn--") {
		a, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("domain %q: %w", s, err)
		}
		s = a
	}
	if len(s) > maxDomain { // A-labels are longer than what they stand for
		return "", fmt.Errorf("domain is longer than %d octets", maxDomain)
	}
	s = strings.ToLower(s)
	for label := range strings.SplitSeq(s, ".") {
		if err := checkLabel(label); err != nil {
			return "", fmt.Errorf("domain %q: %w", s, err)
		}
	}
	return s, nil
}

// isDomain reports a name that is in this form already, as nearly all are. Whether an A-label is one, it leaves to others.
func isDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	label := 0 // octets of the label at hand
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_':
		case c == '-' && label > 0 && s[i-1] != '-':
		case c == '.' && label > 0 && s[i-1] != '-':
			label = -1
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0 && s[len(s)-1] != '-'
}

// checkLabel wants letters, digits and hyphens, and forgives underscores: such hosts send real mail.
func checkLabel(l string) error {
	if l == "" || len(l) > 63 {
		return fmt.Errorf("a label must have 1 to 63 octets")
	}
	if l[0] == '-' || l[len(l)-1] == '-' {
		return fmt.Errorf("label %q begins or ends with a hyphen", l)
	}
	for i := range len(l) {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("label %q has the character %q", l, c)
		}
	}
	return nil
}

// AddressLiteral reads a domain literal, "[192.0.2.1]" or "[IPv6:2001:db8::1]" (RFC 5321, 4.1.3).
func AddressLiteral(s string) (netip.Addr, bool) {
	inner, ok := strings.CutPrefix(s, "[")
	if !ok {
		return netip.Addr{}, false
	}
	inner, ok = strings.CutSuffix(inner, "]")
	if !ok {
		return netip.Addr{}, false
	}
	if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
		a, err := netip.ParseAddr(inner[5:])
		return a, err == nil && a.Is6() && a.Zone() == ""
	}
	a, err := netip.ParseAddr(inner)
	return a, err == nil && a.Is4()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
