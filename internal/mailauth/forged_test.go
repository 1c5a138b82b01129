package mailauth

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"understudy/internal/header"
	"understudy/internal/mta"
)

var own = []string{"mx2.example.org", "mail.Example.ORG.", "example.net", "bücher.example"}

func TestForgedFieldsAreFoundInAnyDisguise(t *testing.T) {
	forged := []string{
		"Authentication-Results: mx2.example.org; spf=pass",
		"authentication-RESULTS:mx2.example.org;spf=pass",
		"Authentication-Results : mx2.example.org; spf=pass",
		"Authentication-Results\t: mx2.example.org; spf=pass",
		"Authentication-Results\r\n : mx2.example.org; spf=pass",
		"Authentication-Results:\r\n\tmx2.example.org; spf=pass",
		"Authentication-Results:\r\n \r\n mx2.example.org; spf=pass",
		"Authentication-Results: MX2.Example.Org; spf=pass",
		"Authentication-Results: mx2.example.org.; spf=pass",
		"Authentication-Results: mx2.example.org 1; spf=pass",
		"Authentication-Results: mx2.example.org/1; spf=pass",
		"Authentication-Results: mx2.example.org 2; spf=pass",
		"Authentication-Results: mx2.example.org",
		"Authentication-Results: mx2.example.org spf=pass",
		`Authentication-Results: "mx2.example.org"; spf=pass`,
		`Authentication-Results: "mx2.\example.org" 1; spf=pass`,
		`Authentication-Results: " mx2.example.org "; spf=pass`,
		"Authentication-Results: (foreign.example; spf=none) mx2.example.org; spf=pass",
		"Authentication-Results: (a (nested\\)) one)\r\n (and another) mx2.example.org; spf=pass",
		"Authentication-Results: mx2.example.org(comment); spf=pass",
		"Authentication-Results: mail.example.org; spf=pass",
		"Authentication-Results: mx2.example.org\v; spf=pass",
		"Authentication-Results: \x00\u00a0mx2.example.org\u00a01; spf=pass",
		"Authentication-Results: mx2.example.org\xa0; spf=pass",
		"Authentication-Results: mx2.exam\u00adple.org; spf=pass",
		"Authentication-Results: example.net; spf=pass",
		"Authentication-Results: deep.below.example.net; spf=pass",
		"Authentication-Results: BÜCHER.example; spf=pass",
		"Authentication-Results: xn--bcher-kva.example; spf=pass",
		"ARC-Authentication-Results: i=1; mx2.example.org; spf=pass",
		"arc-authentication-results : i=1 (c);\r\n (c) \"mail.example.org\" 1; spf=pass",
		// There is no telling who wrote these.
		"Authentication-Results:",
		"Authentication-Results: spf=pass smtp.mailfrom=example.net",
		"Authentication-Results: spf (c) = pass",
		"Authentication-Results: =?utf-8?q?mx2.example.org?=; spf=pass",
		"Authentication-Results: \xffmx2.example.org; spf=pass",
		"Authentication-Results: ; spf=pass",
		"Authentication-Results: (mx2.example.org; spf=pass",
		`Authentication-Results: "mx2.example.org; spf=pass`,
		"Authentication-Results: (" + strings.Repeat("x", 70_000) + ") mx2.example.org; spf=pass",
		"X-Spam-Flag: NO", "x-spam: no", "X-SPAM-Status : No, score=-100", "X-Spamd-Result: default: False", "X-Spamd-Bar: /",
		"X-Rspamd-Action: no action", "X-Rspamd-Score: -10", "X-Rspamd\r\n\t: x", "X-Understudy-Verdict: accept",
	}
	for _, f := range forged {
		msg := "From: bob@example.com\r\n" + f + "\r\nTo: u@example.org\r\n\r\n" + f + "\r\n"
		spans, err := Forged(own, contentOf(msg))
		if err != nil || len(spans) != 1 {
			t.Errorf("%q is not found: %v %v", f[:min(len(f), 80)], spans, err)
			continue
		}
		want := "From: bob@example.com\r\nTo: u@example.org\r\n\r\n" + f + "\r\n"
		if got := readAll(t, mta.Edit{Drop: spans}.Apply("", contentOf(msg))); got != want {
			t.Errorf("%q: left is %q", f, got)
		}
	}
}

func TestForeignFieldsStay(t *testing.T) {
	for _, f := range []string{
		"Authentication-Results: mx.example.com; spf=pass",
		"Authentication-Results: mx2.example.org.evil.example; spf=pass",
		"Authentication-Results: badexample.net; spf=pass",
		"Authentication-Results: (mx2.example.org) mx.example.com; spf=pass",
		`Authentication-Results: "mx.example.com"; x="mx2.example.org"`,
		"Authentication-Results-Original: mx2.example.org; spf=pass",
		"ARC-Authentication-Results: i=1; mx.example.com; spf=pass",
		"Received-SPF: pass (mx2.example.org: x)",
		"X-Spa: m", "X-Originating-IP: 192.0.2.1", "Subject: X-Spam-Flag: YES", "X-Rspam: 1",
	} {
		msg := f + "\r\nFrom: bob@example.com\r\n\r\nX-Spam: body\r\n"
		if spans, err := Forged(own, contentOf(msg)); err != nil || len(spans) != 0 {
			t.Errorf("%q: got %v, %v", f, spans, err)
		}
	}
}

// What stands before the first field and begins with a blank would go on our own Received.
func TestALineThatWouldGoOnOursIsDropped(t *testing.T) {
	for _, first := range []string{" (trusted [10.0.0.1])\r\n", "\tid x\r\n more\r\n", " \r\n"} {
		msg := first + "From: bob@example.com\r\n\r\nbody\r\n"
		spans, err := Forged(nil, contentOf(msg))
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, mta.Edit{Drop: spans}.Apply("", contentOf(msg))); got != "From: bob@example.com\r\n\r\nbody\r\n" {
			t.Errorf("%q: got %q", msg, got)
		}
	}
}

func TestAHeaderThatCannotBeReadToItsEndIsRefused(t *testing.T) {
	for _, msg := range []string{strings.Repeat("A: 1\r\n", header.MaxFields+1), "A: " + strings.Repeat("x", header.MaxOctets+1) + "\r\n"} {
		_, err := Forged(own, contentOf(msg+"X-Spam: x\r\n\r\n"))
		if r, ok := errors.AsType[*mta.Reply](err); !ok || r.Code != 552 {
			t.Errorf("got %v", err)
		}
	}
	broken := errors.New("broken")
	_, err := Forged(own, mta.Content{Open: func() (io.ReadCloser, error) { return nil, broken }})
	if _, ok := errors.AsType[*mta.Reply](err); ok || !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// Only whole fields go, the rest stays octet by octet, and what was cleaned once is clean.
func FuzzForged(f *testing.F) {
	f.Add([]byte("Authentication-Results: mx2.example.org; spf=pass\r\nFrom: a@b\r\nX-Spam: x\r\n\r\nX-Spam: body\r\n"))
	f.Add([]byte(" x\r\nAuthentication-Results\t:\r\n (c) \"mx2.example.org\"\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := mta.Content{Size: int64(len(in)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(in)), nil }}
		spans, err := Forged(own, c)
		if err != nil {
			return
		}
		var left []byte // of the fields that must stay, and the body
		h, err := header.Read(c, func(f *header.Field) error {
			for _, s := range spans {
				if f.Span.Start >= s.Start && f.Span.End <= s.End {
					return nil
				}
			}
			left = append(left, in[f.Span.Start:f.Span.End]...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, in[h.Octets:]...)
		after := readAll(t, mta.Edit{Drop: spans}.Apply("", c))
		if after != string(left) {
			t.Errorf("%q became %q, want %q", in, after, left)
		}
		again, err := Forged(own, contentOf("Received: x\r\n"+after))
		if err != nil || len(again) != 0 {
			t.Errorf("%q, cleaned %q, has %v, %v", in, after, again, err)
		}
	})
}
