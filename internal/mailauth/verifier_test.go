package mailauth

import (
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

func TestAMessageIsJudgedAsAWhole(t *testing.T) {
	k := edKey(t)
	v := verifier(t, memory(t, dnstest.Zones{"sel._domainkey.example.net": {k.record}, "_dmarc.example.net": {`TXT "v=DMARC1; p=reject"`}}))
	good := signed(t, plainMessage, k, dkim.SignOptions{})
	stranger := mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "example.com"}, Helo: mta.AuthResult{Result: "none"}}
	tests := []struct {
		name, msg string
		want      string // the findings
		dmarc     string
		aligned   bool
	}{
		{"signed", good, "", "pass", true},
		{"unsigned", plainMessage, "dmarc:reject", "fail", false},
		{"changed", good + "more\r\n", "dkim:fail dmarc:reject", "fail", false},
		{"a second author, who signed nothing", strings.Replace(good, "\r\nTo:", "\r\nFrom: eve@example.org\r\nTo:", 1), "header:many-from dkim:fail dmarc:reject", "fail", false},
		{"signed, with a second author of no policy", signed(t, strings.Replace(plainMessage, "From: ", "From: eve@example.org, ", 1), k, dkim.SignOptions{}), "header:from", "none", false},
		{"no author", "Date: x\r\n\r\n", "header:no-from", "none", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			auth, findings, err := v.Content(t.Context(), contentOf(tt.msg), stranger)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, f := range findings {
				names = append(names, f.Name)
			}
			if got := strings.Join(names, " "); got != tt.want || auth.DMARC.Result != tt.dmarc || auth.Aligned != tt.aligned {
				t.Errorf("got %q and %+v, want %q, %s, %v", got, auth, tt.want, tt.dmarc, tt.aligned)
			}
			if auth.SPF != stranger.SPF || auth.Helo != stranger.Helo {
				t.Errorf("what SPF found is lost: %+v", auth)
			}
		})
	}
}

// Whatever a message holds, it is read without harm, every result is a word of RFC 8601, and what is written of it is
// a header field.
func FuzzContent(f *testing.F) {
	k := edKey(f)
	good := signed(f, plainMessage, k, dkim.SignOptions{})
	f.Add([]byte(good))
	f.Add([]byte(signed(f, good, k, dkim.SignOptions{})))
	f.Add([]byte("DKIM-Signature: v=1; a=rsa-sha256; d=example.net; s=sel; h=from:from; l=1; bh=; b=\r\nFrom: a@b\r\n"))
	f.Add([]byte(" x\r\nDKIM-Signature: v=1;a=;d=;s=;h=;bh=;b=;c=//;q=;t=;x=\r\n\r\n"))
	v := verifier(f, memory(f, dnstest.Zones{"sel._domainkey.example.net": {k.record}, "_dmarc.example.net": {`TXT "v=DMARC1; p=reject"`}}))
	words := []string{"pass", "fail", "policy", "neutral", "temperror", "permerror", "none"}
	f.Fuzz(func(t *testing.T, msg []byte) {
		auth, findings, err := v.Content(t.Context(), contentOf(string(msg)), mta.Auth{SPF: mta.AuthResult{Result: "none"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range append(auth.DKIM, auth.DMARC) {
			if !slices.Contains(words, r.Result) {
				t.Errorf("got %+v", r)
			}
		}
		for _, f := range findings {
			if strings.ContainsAny(f.Text, "\r\n") || f.Name == "" {
				t.Errorf("got %+v", f)
			}
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(Fields("mx2.example.org", envelope(bob, "x"), auth), "\r\n"), "\r\n") {
			if !allowed.MatchString(line) {
				t.Errorf("%q", line)
			}
		}
	})
}
