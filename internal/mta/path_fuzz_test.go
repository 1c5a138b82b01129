package mta

import (
	"strings"
	"testing"
)

// A Path that was read can be written into a command or a header and is read back from there as the same.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"<>", "<bob@example.org>", "<Postmaster>", "<@a.example,@b.example:bob@example.org>", `<"b o b"@example.org>`,
		`<"foo> SIZE=1"@example.org>`, `<"a\"b\\c"@example.org>`, "<bob@[IPv6:2001:db8::1]>", "<jörg@bücher.example>", "a..b.@x", `"\`,
		"<bob@example.org> SIZE=1", "bob@\xff.example", "bob@a\u2028b.example", "bob@\u00ad.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			if p != (Path{}) {
				t.Errorf("%q comes with an error", p)
			}
			return
		}
		text := p.String()
		if strings.ContainsAny(text, "\r\n\x00") {
			t.Fatalf("%q is written %q", s, text)
		}
		if _, after, _ := cutQuoted(text); strings.ContainsAny(after, " <>\t") {
			t.Errorf("%q is written %q, which would end the path early", s, text)
		}
		for _, form := range []string{text, "<" + text + ">"} {
			if back, err := ParsePath(form); err != nil || back != p {
				t.Errorf("%q is %#v, written %q, read back as %#v (%v)", s, p, form, back, err)
			}
		}
		if p.Domain != "" && p.Domain[0] != '[' && p.DomainKey() == "" {
			t.Errorf("%q has no key", p.Domain)
		}
	})
}

// cutQuoted takes a quoted string off the front.
func cutQuoted(s string) (quoted, after string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", s, false
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[:i+1], s[i+1:], true
		}
	}
	return "", s, false
}
