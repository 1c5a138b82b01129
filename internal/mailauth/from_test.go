package mailauth

import (
	"slices"
	"strings"
	"testing"

	"understudy/internal/mta"
)

func TestAuthorsAreFoundInAnyFromField(t *testing.T) {
	tests := []struct {
		in   string
		want []string
		ok   bool
	}{
		{"bob@example.com", []string{"example.com"}, true},
		{"Bob <bob@Example.COM.>", []string{"example.com"}, true},
		{`"Bob, Jr." <bob@example.com>`, []string{"example.com"}, true},
		{`"bob@evil.example" <bob@example.com>`, []string{"example.com"}, true},
		{`"a \" <b@evil.example>" <bob@example.com>`, []string{"example.com"}, true},
		{"bob@example.com (Bob, <b@evil.example>)", []string{"example.com"}, true},
		{"bob (a (nested) \\) comment) <bob@example.com>", []string{"example.com"}, true},
		{`"a b"@example.com`, []string{"example.com"}, true},
		{`<"a>b"@example.com>`, []string{"example.com"}, true},
		{"<@relay.example,@other.example:bob@example.com>", []string{"example.com"}, true},
		{"bob@example.com, Eve <eve@example.net>", []string{"example.com", "example.net"}, true},
		{"Team: bob@example.com, eve@example.net;", []string{"example.com", "example.net"}, true},
		{"undisclosed:;", nil, true},
		{"bob@ example . com", []string{"example.com"}, true},
		{"bob@bücher.example", []string{"xn--bcher-kva.example"}, true},
		{"=?utf-8?q?B=C3=B6b?= <bob@example.com>", []string{"example.com"}, true},
		{"bob@[192.0.2.1]", []string{""}, true},
		{"<bob@example.com (home)>", []string{"example.com"}, true},
		{"<bob@example.com (home>", []string{"example.com"}, false},
		{"", nil, true},
		// What no mail program should write.
		{"bob", []string{}, false},
		{"<>", []string{}, false},
		{"bob@bank.example <eve@example.net>", []string{"example.net"}, false},
		{"Bob <bob@bank.example> <eve@example.net>", []string{"bank.example", "example.net"}, false},
		{`"Bob <bob@example.com>`, []string{"example.com"}, false},
		{"Bob (x <bob@example.com>", []string{"example.com"}, false},
		{"Bob <bob@example.com", []string{"example.com"}, false},
		{"bob@-bad-.example", []string{}, false},
		{"bob@bank.example\x00 <eve@example.net>", []string{"example.net"}, false},
		{"bob@bank.example@example.net", []string{"bank.example", "example.net"}, false},
		{`bob@bank.example\@example.net`, []string{"bank.example", "example.net"}, false},
		{"Bob <bob@bank.example@example.net>", []string{"bank.example", "example.net"}, false},
		{"bob@bank.example:eve@example.net", []string{"bank.example", "example.net"}, false},
		{`<"bob@bank.example"@example.net>`, []string{"example.net"}, true},
		{"bob(@bank.example)@example.net", []string{"example.net"}, true},
		{"bob@bank.example>, <eve@example.net>", []string{"bank.example", "example.net"}, false},
	}
	for _, tt := range tests {
		if got, ok := mailboxes(tt.in); ok != tt.ok || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v, want %q, %v", tt.in, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzMailboxes(f *testing.F) {
	f.Add(`"a \" <b@c>" (x(y)) <@r:bob@example.com>, g: a@b;`)
	f.Add(`<"`)
	f.Add(`(\`)
	f.Fuzz(func(t *testing.T, s string) {
		list, _ := mailboxes(s)
		if len(list) > len(s)+1 {
			t.Errorf("%d of %q", len(list), s)
		}
		for _, d := range list {
			if again, err := mta.Domain(d); d != "" && (err != nil || again != d) {
				t.Errorf("%q has %q", s, d)
			}
		}
	})
}

func TestWhatRealMailDoesNotHaveIsFound(t *testing.T) {
	const date = "Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n"
	const from = "From: bob@example.com\r\n"
	tests := []struct {
		name, header string
		want         string // finding names, those that refuse with a "!"
	}{
		{"clean", from + date + "Received: a\r\nReceived: b\r\nX: 1\r\nX: 2\r\n", ""},
		{"no From", date, "header:no-from"},
		{"no Date", from, "header:no-date"},
		{"two From fields", from + from + date, "header:many-from"},
		{"a From with two addresses", "From: a@example.com, b@example.com\r\n" + date, "header:from"},
		{"a From without any", "From: \r\n" + date, "header:from"},
		{"a From that is none", "From: a@b@\r\n" + date, "header:from"},
		{"a From that is too long to be read", "From: " + strings.Repeat("(x) ", 17000) + "a@a.example\r\n" + date, "header:from-too-long! header:overlong"},
		{"a From with many domains", "From: a@a.example, a@b.example, a@c.example, a@d.example, a@e.example\r\n" + date, "header:many-domains!"},
		{"duplicates", from + date + "Subject: a\r\nSUBJECT : b\r\nTo: x\r\nTo: y\r\n", "header:duplicate"},
		{"a long line", from + date + "X: " + strings.Repeat("x", 996) + "\r\n", "header:overlong"},
		{"a long line that is no field", from + date + strings.Repeat("x", 999) + "\r\n", "header:overlong header:odd-line"},
		{"a line as long as may be", from + date + "X: " + strings.Repeat("x", 995) + "\r\n", ""},
		{"NUL", from + date + "X: \x00\r\n", "header:nul"},
		{"an odd line", from + date + "hello\r\n", "header:odd-line"},
		{"too many fields", from + date + strings.Repeat("A:\r\n", 10_000), "header:too-large!"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, findings, err := verifier(t, memory(t, nil)).Content(t.Context(), contentOf(tt.header+"\r\nbody\r\n"), mta.Auth{})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, f := range findings {
				if f.Action == mta.Reject {
					f.Name += "!"
				}
				if f.Text == "" || f.Weight <= 0 {
					t.Errorf("says nothing: %+v", f)
				}
				names = append(names, f.Name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
