package mta

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestTheEnhancedCodeIsTakenOffEachLine(t *testing.T) {
	tests := []struct {
		code     int
		text     string
		enhanced string
		rest     string
	}{
		{550, "5.1.1 no such user", "5.1.1", "no such user"},
		{550, "5.1.1 no such user\n5.1.1 see https://example.org", "5.1.1", "no such user\nsee https://example.org"},
		{250, "2.0.0", "2.0.0", ""},
		{250, "ok", "", "ok"},
		{550, "4.1.1 classes disagree", "", "4.1.1 classes disagree"},
		{550, "5.1 two numbers", "", "5.1 two numbers"},
		{550, "5.01.1 a leading zero", "", "5.01.1 a leading zero"},
		{550, "5.1.1000 too large", "", "5.1.1000 too large"},
		{220, "192.0.2.1 is my name", "", "192.0.2.1 is my name"},
	}
	for _, tt := range tests {
		if r := ParseReply(tt.code, tt.text); r.Code != tt.code || r.Enhanced != tt.enhanced || r.Text != tt.rest {
			t.Errorf("%d %q: got %+v", tt.code, tt.text, r)
		}
	}
}

func TestAReplyIsOneLineAndTravelsInAnErrorChain(t *testing.T) {
	err := fmt.Errorf("forwarder: %w", NewReply(451, "4.3.0", "try %s", "again\nlater"))
	r, ok := errors.AsType[*Reply](err)
	if !ok || r.Error() != "451 4.3.0 try again later" {
		t.Errorf("got %v", err)
	}
	for code, want := range map[int]string{250: "positive", 354: "positive", 451: "temporary", 550: "permanent", 0: ""} {
		r := Reply{Code: code}
		if r.Positive() != (want == "positive") || r.Temporary() != (want == "temporary") || r.Permanent() != (want == "permanent") {
			t.Errorf("%d: positive %v, temporary %v, permanent %v", code, r.Positive(), r.Temporary(), r.Permanent())
		}
	}
}

// A reply neither gains nor loses words by being taken apart.
func FuzzParseReply(f *testing.F) {
	f.Add(550, "5.1.1 no such user\n5.1.1 really")
	f.Add(250, "2.0.0")
	f.Add(421, "4.3.2")
	f.Add(-1, "9.9.9 x")
	f.Fuzz(func(t *testing.T, code int, text string) {
		r := ParseReply(code, text)
		if r.Enhanced == "" && r.Text != text {
			t.Errorf("%q became %q", text, r.Text)
		}
		if r.Enhanced != "" {
			first, _, _ := strings.Cut(r.Text, "\n")
			if got := strings.TrimSuffix(r.Enhanced+" "+first, " "); !strings.HasPrefix(text, got) {
				t.Errorf("%q became %q and %q", text, r.Enhanced, r.Text)
			}
		}
		if strings.Contains(r.String(), "\n") {
			t.Errorf("%q is more than one line", r.String())
		}
	})
}
