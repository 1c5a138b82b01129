package filter

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestValidateFindsEveryFault(t *testing.T) {
	good := []Config{
		{Kind: Rspamd, Address: "127.0.0.1:11333"},
		{Kind: Rspamd, Name: "remote", Address: "https://scan.example.org/rspamd", TLSCA: "/etc/ca.pem", PasswordFile: "/etc/pw", VirusScanner: true},
		{Kind: Milter, Address: "unix:/run/opendkim/opendkim.sock", OnFailure: AcceptAndMark},
		{Kind: Milter, Name: "clamav", Address: "[::1]:7357", VirusScanner: true, MaxSize: 1 << 20},
		{Kind: Spamd, Address: "localhost:783", RejectScore: 15},
		{Kind: Clamd, Address: "unix:/run/clamav/clamd.ctl", Timeout: time.Minute, OnFailure: Defer},
	}
	if faults := Validate(good); len(faults) > 0 {
		t.Errorf("good ones: %v", faults)
	}
	bad := []struct {
		cfg  Config
		keys string
	}{
		{Config{}, "[0].kind"},
		{Config{Kind: "pigeon", Timeout: -1}, "[0].kind"},
		{Config{Kind: Rspamd}, "[0].address"},
		{Config{Kind: Rspamd, Address: "ftp://x"}, "[0].address"},
		{Config{Kind: Rspamd, Address: "http://user:pw@x"}, "[0].address"},
		{Config{Kind: Clamd, Address: "http://x"}, "[0].address"},
		{Config{Kind: Clamd, Address: "localhost"}, "[0].address"},
		{Config{Kind: Clamd, Address: ":3310"}, "[0].address"},
		{Config{Kind: Clamd, Address: "localhost:0"}, "[0].address"},
		{Config{Kind: Clamd, Address: "unix:clamd.ctl"}, "[0].address"},
		{Config{Kind: Clamd, Address: "x:1", OnFailure: AcceptAndMark}, "[0].on_failure"},
		{Config{Kind: Milter, Address: "x:1", OnFailure: AcceptAndMark, VirusScanner: true}, "[0].on_failure"},
		{Config{Kind: Milter, Address: "x:1", OnFailure: "ignore"}, "[0].on_failure"},
		{Config{Kind: Milter, Address: "x:1", Name: "a b"}, "[0].name"},
		{Config{Kind: Milter, Address: "x:1", Timeout: -1, MaxConnections: 5000, MaxSize: -1, PasswordFile: "x", RejectScore: 1},
			"[0].timeout [0].max_connections [0].max_size [0].password_file [0].reject_score"},
		{Config{Kind: Rspamd, Address: "x:1", TLSCA: "x"}, "[0].tls_ca"},
	}
	for _, tt := range bad {
		var keys []string
		for _, f := range Validate([]Config{tt.cfg}) {
			keys = append(keys, f.Key)
		}
		if got := strings.Join(keys, " "); got != tt.keys {
			t.Errorf("%+v: faults at %q, want %q", tt.cfg, got, tt.keys)
		}
	}
	twice := Validate([]Config{{Kind: Clamd, Address: "x:1"}, {Kind: Milter, Name: "clamd", Address: "x:2"}})
	if len(twice) != 1 || twice[0].Key != "[1].name" {
		t.Errorf("one name for two: %v", twice)
	}
}

func TestWhatFiltersSayIsOneLineOfPrintableASCII(t *testing.T) {
	tests := []struct{ in, line, word string }{
		{"plain text", "plain text", "plain-text"},
		{"  two\r\n250 OK\t\x00x  ", "two 250 OK ?x", "two--250-OK--x"},
		{"caf\u00e9 \u202e\xff", "caf? ??", "caf----"},
		{"", "", "unknown"},
		{strings.Repeat("long ", 100), strings.TrimSpace(strings.Repeat("long ", 40)), strings.Repeat("long-", 13)[:maxName]},
	}
	for _, tt := range tests {
		if got := line(tt.in, maxText); got != tt.line {
			t.Errorf("line(%q) = %q, want %q", tt.in, got, tt.line)
		}
		if got := word(tt.in); got != tt.word {
			t.Errorf("word(%q) = %q, want %q", tt.in, got, tt.word)
		}
	}
}

// TestNothingInReceivedSpeaksForAnotherHost: what the client chose can't look like a part of the field.
func TestNothingInReceivedSpeaksForAnotherHost(t *testing.T) {
	env := envelope()
	env.Peer.Helo, env.Peer.Name = "x.(mail.example.org[192.0.2.10])\r\nX: y", ""
	env.From.Local = "bob>) (envelope-from <boss"
	m := &message{env: env, hostname: "mx2.example.org"}
	want := fmt.Sprintf("Received: from x.?mail.example.org?192.0.2.10????X:?y (unknown [198.51.100.7])\r\n"+
		"\tby mx2.example.org (Understudy) with ESMTPS id %s\r\n\t(envelope-from <bob????envelope-from??boss@example.net>); %s\r\n",
		env.ID, env.Received.Format(time.RFC1123Z))
	if got := m.received(); got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}
