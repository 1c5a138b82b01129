package mta

import (
	"strings"
	"testing"
)

func TestPathsAreReadAsRFC5321WritesThem(t *testing.T) {
	tests := []struct {
		in            string
		local, domain string
		out           string
	}{
		{"<>", "", "", ""},
		{"", "", "", ""},
		{"<bob@example.org>", "bob", "example.org", "bob@example.org"},
		{"bob@Example.ORG.", "bob", "Example.ORG.", "bob@Example.ORG."},
		{"<Postmaster>", "Postmaster", "", "Postmaster"},
		{"<@a.example,@b.example:bob@example.org>", "bob", "example.org", "bob@example.org"},
		{`<"bob"@example.org>`, "bob", "example.org", "bob@example.org"},
		{`<"b o b"@example.org>`, "b o b", "example.org", `"b o b"@example.org`},
		{`<"foo> SIZE=1"@example.org>`, "foo> SIZE=1", "example.org", `"foo> SIZE=1"@example.org`},
		{`<"a\"b\\c"@example.org>`, `a"b\c`, "example.org", `"a\"b\\c"@example.org`},
		{`<"\a@b"@example.org>`, "a@b", "example.org", `"a@b"@example.org`},
		{"<.a..b.@example.org>", ".a..b.", "example.org", ".a..b.@example.org"},
		{"<bob@[192.0.2.1]>", "bob", "[192.0.2.1]", "bob@[192.0.2.1]"},
		{"<bob@[IPv6:2001:db8::1]>", "bob", "[IPv6:2001:db8::1]", "bob@[IPv6:2001:db8::1]"},
		{"<jörg@bücher.example>", "jörg", "bücher.example", "jörg@bücher.example"},
	}
	for _, tt := range tests {
		p, err := ParsePath(tt.in)
		if err != nil || p.Local != tt.local || p.Domain != tt.domain || p.String() != tt.out {
			t.Errorf("%s: got %q @ %q, written %q (%v)", tt.in, p.Local, p.Domain, p, err)
		}
	}
}

func TestWhatIsNoPathIsRefused(t *testing.T) {
	for _, s := range []string{
		"bob", "<bob>", "<bob@example.org", "@example.org", "bob@", "bob@@example.org", "bob@ example.org", "b ob@example.org",
		`"bob@example.org`, `"bob\`, `"bob"x@example.org`, `""@example.org`, "bob@-a.example", "bob@a..example", "bob@[192.0.2]",
		"bob@[::1]", "bob@[IPv6:fe80::1%eth0]", "<@a.example>", "bob@example.org>", "b\rob@example.org", "\"b\nob\"@example.org",
		"b\x00b@example.org", "b\x7fb@example.org", "b\u0085b@example.org", "b\xffb@example.org", "\"\\\r\"@example.org",
		strings.Repeat("x", maxLocal+1) + "@example.org", "bob@" + strings.Repeat("x", 64) + ".example", "bob@" + strings.Repeat("x.", 128) + "example",
	} {
		if p, err := ParsePath(s); err == nil {
			t.Errorf("%q was read as %q @ %q", s, p.Local, p.Domain)
		}
	}
}

func TestDomainKeyIsOneForAllSpellings(t *testing.T) {
	for _, s := range []string{"bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "XN--bcher-KVA.Example."} {
		if got := (Path{Local: "a", Domain: s}).DomainKey(); got != "xn--bcher-kva.example" {
			t.Errorf("%s: got %q", s, got)
		}
	}
	for _, s := range []string{"", "[192.0.2.1]"} {
		if got := (Path{Local: "postmaster", Domain: s}).DomainKey(); got != "" {
			t.Errorf("%q: got %q", s, got)
		}
	}
}
