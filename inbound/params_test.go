package inbound

import (
	"strings"
	"testing"
)

func TestORcptIsDecoded(t *testing.T) {
	for _, tt := range []struct {
		in, want string // want is empty if it is refused
		smtputf8 bool
	}{
		{"rfc822;alice@example.org", "rfc822;alice@example.org", false},
		{"RFC822;al+2Bice@example.org", "RFC822;al+ice@example.org", false},
		{"rfc822;a+20b@example.org", "rfc822;a b@example.org", false},
		{"rfc822;+C3+A4lice@example.org", "rfc822;älice@example.org", false}, // so Postfix writes it
		{"rfc822;+C3lice@example.org", "", false},
		{"rfc822;a+0D+0Ab", "", false},
		{"rfc822;a+2", "", false},
		{"rfc822;a+2b", "", false},
		{"rfc822;älice@example.org", "", true},
		{"utf-8;\\x{E4}lice@example.org", "utf-8;älice@example.org", false},
		{"utf-8;älice@example.org", "utf-8;älice@example.org", true},
		{"utf-8;älice@example.org", "", false},
		{"utf-8;\\x{A}x", "", false},
		{"utf-8;\\x{D800}x", "", false},
		{"utf-8;\\x{110000}x", "", false},
		{"utf-8;\\x{E4", "", false},
		{"utf-8;a+b", "", false},
		{"x400;C=de+3BA=x", "x400;C=de;A=x", false},
		{"rfc822;", "", false},
		{";alice", "", false},
		{"rf c;alice", "", false},
		{"rfc822;" + strings.Repeat("x", 500), "", false},
	} {
		got, err := parseORcpt(tt.in, tt.smtputf8)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestPathIsCutWhereItEnds(t *testing.T) {
	for _, tt := range []struct {
		arg, path, params string
		ok                bool
	}{
		{"FROM:<>", "<>", "", true},
		{"from: <a@b.c>  SIZE=1 ", "<a@b.c>", "SIZE=1", true},
		{`FROM:<"a> b"@c> X=1`, `<"a> b"@c>`, "X=1", true},
		{`FROM:<"a\"> b"@c>`, `<"a\"> b"@c>`, "", true},
		{`FROM:<"a\\"@c>`, `<"a\\"@c>`, "", true},
		{"FROM:a@b.c X=1", "a@b.c", "X=1", true},
		{`FROM:"a b"@c X=1`, `"a b"@c`, "X=1", true},
		{"FROM:<a@b.c>X", "", "", false},
		{"FROM:<a@b.c", "", "", false},
		{`FROM:<"a@b.c>`, "", "", false},
		{"FROM:", "", "", false},
		{"FROM", "", "", false},
		{"TO:<a@b.c>", "", "", false},
	} {
		path, params, ok := splitPath(tt.arg, "FROM:")
		if path != tt.path || params != tt.params || ok != tt.ok {
			t.Errorf("%s: got %q, %q, %v", tt.arg, path, params, ok)
		}
	}
}

// What the session is left with can be written back into a command and means the same.
func FuzzParamsAreText(f *testing.F) {
	f.Add("ORCPT=rfc822;a+2Bb NOTIFY=SUCCESS,FAILURE", "SIZE=1 ENVID=a+20b RET=FULL BODY=8BITMIME SMTPUTF8")
	f.Add(`ORCPT=utf-8;\x{E4}`, "SIZE=99999999999999999999")
	f.Fuzz(func(t *testing.T, rcpt, mail string) {
		all := offers{true, true, true, true}
		if p, reply := parseRcptParams(rcpt, all, true); reply == nil && !isPrintableText(p.orcpt) {
			t.Errorf("%q: orcpt %q", rcpt, p.orcpt)
		}
		p, reply := parseMailParams(mail, all)
		if reply == nil && (!isPrintableASCII(p.EnvID) || p.size < -1) {
			t.Errorf("%q: %+v", mail, p)
		}
		if reply != nil && (reply.Code < 500 || !isPrintableASCII(reply.Text)) {
			t.Errorf("%q: %v", mail, reply)
		}
	})
}
