package dnsbl

import (
	"net/netip"
	"strings"
	"testing"
)

func TestEntriesAreReadAsPostscreenWritesThem(t *testing.T) {
	tests := []struct {
		in, list string
		weight   float64
		yes, no  []string
	}{
		{"zen.example.org", "zen.example.org", 1, []string{"127.0.0.2", "127.9.9.9"}, nil},
		{"zen.example.org*2", "zen.example.org", 2, []string{"127.0.0.2"}, nil},
		{"Zen.Example.ORG.*-2", "zen.example.org", -2, nil, nil},
		{"a.b=127.0.0.2", "a.b", 1, []string{"127.0.0.2"}, []string{"127.0.0.3", "127.0.1.2", "::ffff:0:2"}},
		{"a.b=127.0.0.[2;3;5]*3", "a.b", 3, []string{"127.0.0.2", "127.0.0.3", "127.0.0.5"}, []string{"127.0.0.4"}},
		{"a.b=127.0.[0..255].[1..3]*-2", "a.b", -2, []string{"127.0.0.1", "127.0.255.3", "127.0.7.2"}, []string{"127.0.0.4", "127.1.0.1"}},
		{"a.b=127.[0;2..4].0.[9..11;250]*0.5", "a.b", 0.5, []string{"127.3.0.10", "127.0.0.250"}, []string{"127.1.0.10", "127.2.0.12"}},
		{"key_1.dq.example.net=127.0.0.255", "key_1.dq.example.net", 1, []string{"127.0.0.255"}, nil},
	}
	for _, tt := range tests {
		e, err := ParseEntry(tt.in)
		if err != nil || e.List != tt.list || e.Weight != tt.weight {
			t.Errorf("%s: got %+v (%v)", tt.in, e, err)
			continue
		}
		for _, a := range tt.yes {
			if !e.Pattern.Match(netip.MustParseAddr(a)) {
				t.Errorf("%s does not match %s", tt.in, a)
			}
		}
		for _, a := range tt.no {
			if e.Pattern.Match(netip.MustParseAddr(a)) {
				t.Errorf("%s matches %s", tt.in, a)
			}
		}
	}
}

func TestAMistakeInAnEntryIsNamed(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "no list",
		"*2":                     "no list",
		"localhost":              "full name",
		"192.0.2.1":              "an address",
		"a b.example":            "not a domain",
		"a..b":                   "not a domain",
		"a.b*":                   "not a number",
		"a.b*x":                  "not a number",
		"a.b*NaN":                "not a number",
		"a.b*1e3":                "not a number",
		"a.b*0":                  "is 0",
		"a.b*1001":               "not between",
		"a.b=":                   `"" is not a number`,
		"a.b=127.0.0":            "four octets",
		"a.b=127.0.0.2.3":        "after its fourth octet",
		"a.b=127.0.0.256":        `"256" is not a number from 0 to 255`,
		"a.b=127.0.0.02":         `"02" is not a number`,
		"a.b=127.0.0.[2":         "has no ]",
		"a.b=127.0.0.[]":         `"" is not a number`,
		"a.b=127.0.0.[3..2]":     "ends before it begins",
		"a.b=127.0.0.[2,3]":      "is not a number",
		"a.b=10.0.0.2":           "never match",
		"a.b=127.0.0.[2]x*2":     "after its fourth octet",
		strings.Repeat("a.", 99): "longer",
	} {
		if e, err := ParseEntry(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v, want …%s…", in, e, err, want)
		}
	}
	_, faults := ParseEntries([]string{"a.b", "x", "a.b*3", "a.b=127.0.0.2"})
	if len(faults) != 2 || faults[0].Key != "[1]" || faults[1].Key != "[2]" {
		t.Errorf("got %+v", faults)
	}
}

// What is read is written, and read back the same.
func FuzzParseEntry(f *testing.F) {
	for _, s := range []string{"zen.example.org*2", "a.b=127.0.[0..255].[1..3]*-2", "a.b=127.0.0.[2;3;5]", "a.b*1.5", "=*", "a.b=[127].[0].[0].[2]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEntry(s)
		if err != nil {
			return
		}
		back, err := ParseEntry(e.String())
		if err != nil || back.String() != e.String() || back.Weight != e.Weight || back.List != e.List {
			t.Errorf("%q is %q, read back as %q (%v)", s, e, back, err)
		}
		for _, a := range []string{"127.0.0.2", "127.0.0.3", "127.0.1.2", "127.255.255.254"} {
			if a := netip.MustParseAddr(a); e.Pattern.Match(a) != back.Pattern.Match(a) {
				t.Errorf("%q and %q differ over %s", s, e, a)
			}
		}
	})
}

func TestAddressesAreAskedForInReverse(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.99":                "99.2.0.192.l.example",
		"::ffff:192.0.2.99":         "99.2.0.192.l.example",
		"2001:db8:1:2:3:4:567:89ab": "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.l.example", // RFC 5782, 2.4
	} {
		if got := Name(netip.MustParseAddr(a), "l.example"); got != want {
			t.Errorf("%s: got %s, want %s", a, got, want)
		}
	}
	_, _, must6, mustNot6 := points("l.example")
	if want := "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.l.example"; must6 != want || mustNot6 != "1"+want[1:] {
		t.Errorf("the test points are %s and %s", must6, mustNot6)
	}
}
