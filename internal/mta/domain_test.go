package mta

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDomainsHaveOneForm(t *testing.T) {
	tests := map[string]string{
		"example.org": "example.org", "Example.ORG.": "example.org", "localhost": "localhost", "_dmarc.example.org": "_dmarc.example.org",
		"bücher.example": "xn--bcher-kva.example", "bu\u0308cher.example": "xn--bcher-kva.example", "例え。テスト": "xn--r8jz45g.xn--zckzah",
		strings.Repeat("x", 63) + ".example": strings.Repeat("x", 63) + ".example",
	}
	for in, want := range tests {
		if got, err := Domain(in); err != nil || got != want {
			t.Errorf("%s: got %q (%v), want %q", in, got, err, want)
		}
	}
	for _, s := range []string{
		"", ".", "..", "a..b", ".a", "-a.b", "a-.b", "a b", "a\r\nb", "a@b", "[192.0.2.1]", "xn--", "xn--a-\u00fc", "a\xff.example", "a\x00b", "a/b",
		strings.Repeat("x", 64), strings.Repeat("x.", 127) + "xx", strings.Repeat("\u00fc.", 50) + "example",
	} {
		if got, err := Domain(s); err == nil {
			t.Errorf("%q was read as %q", s, got)
		}
	}
}

// A domain in its one form is printable, short enough for every protocol, and keeps that form.
func FuzzDomain(f *testing.F) {
	for _, s := range []string{"example.org", "bücher.example", "XN--bcher-KVA.Example.", "a..b", "例え。テスト", "_x.y", "ß.example", "\u00ad.a", "a-b.c-1", "a--b.c", "-a", "a-.b", "a.-b", strings.Repeat("a", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Domain(s)
		if capitals, e := Domain(strings.ToUpper(s)); isDomain(s) && (err != nil || e != nil || capitals != d) { // they take the long way
			t.Errorf("%q is a domain, but not in capitals: %q (%v, %v)", s, capitals, err, e)
		}
		if err != nil {
			if d != "" {
				t.Errorf("%q comes with an error", d)
			}
			return
		}
		if len(d) > maxDomain || strings.ContainsAny(d, " \r\n\x00<>@:;\"'\\[]()") || d != strings.ToLower(d) || !isASCII(d) {
			t.Errorf("%q is no domain", d)
		}
		if again, err := Domain(d); err != nil || again != d {
			t.Errorf("%q becomes %q (%v)", d, again, err)
		}
	})
}

func TestAddressLiterals(t *testing.T) {
	for s, want := range map[string]string{
		"[192.0.2.1]": "192.0.2.1", "[IPv6:2001:db8::1]": "2001:db8::1", "[ipv6:::1]": "::1",
		"192.0.2.1": "", "[192.0.2.1": "", "[::1]": "", "[IPv6:192.0.2.1]": "", "[IPv6:fe80::1%a]": "", "[]": "", "[192.0.2.1]]": "",
	} {
		a, ok := AddressLiteral(s)
		if ok != (want != "") || ok && a != netip.MustParseAddr(want) {
			t.Errorf("%s: got %v, %v", s, a, ok)
		}
	}
}
