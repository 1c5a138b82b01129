package mta

import (
	"slices"
	"testing"
)

func TestPrimaries(t *testing.T) {
	for s, want := range map[string]string{
		"mail.example.org": "mail.example.org:25", "Mail.Example.ORG.:2525": "mail.example.org:2525", "192.0.2.1": "192.0.2.1:25",
		"[2001:db8::1]:26": "[2001:db8::1]:26", "2001:db8::1": "[2001:db8::1]:25", "[2001:db8::1]": "[2001:db8::1]:25",
		"[::ffff:192.0.2.1]:25": "192.0.2.1:25", "bücher.example": "xn--bcher-kva.example:25",
	} {
		p, err := ParsePrimary(s)
		if err != nil || p.String() != want {
			t.Errorf("%s: got %v (%v), want %s", s, p, err, want)
		}
	}
	for _, s := range []string{"", ":25", "a:0", "a:65536", "a:smtp", "a b", "a:25:26", "-a", "[a]b", "fe80::1%eth0"} {
		if p, err := ParsePrimary(s); err == nil {
			t.Errorf("%q was read as %v", s, p)
		}
	}
}

// What a primary is called names it again.
func FuzzParsePrimary(f *testing.F) {
	for _, s := range []string{"mail.example.org:25", "[2001:db8::1]:26", "::1", "192.0.2.1", "a:0", "[]", "]:25", "[[::1]]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePrimary(s)
		if err != nil {
			return
		}
		if back, err := ParsePrimary(p.String()); err != nil || back != p {
			t.Errorf("%q is %v, read back as %v (%v)", s, p, back, err)
		}
	})
}

func TestRoutesWithTheSameTiersAreTheSame(t *testing.T) {
	a, b := Primary{"a.example", 25}, Primary{"b.example", 25}
	names := map[string]bool{}
	for _, tiers := range [][][]Primary{{{a}, {b}}, {{a, b}}, {{b, a}}, {{a}}, nil} {
		names[NewRoute(tiers).Name] = true
		names[NewRoute(slices.Clone(tiers)).Name] = true
	}
	if len(names) != 5 {
		t.Errorf("%d names for 5 routes", len(names))
	}
}
