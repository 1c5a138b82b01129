package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml/parser"

	"understudy/internal/mta"
)

// sample has a field of each type that a part may use.
type sample struct {
	Text   string            `yaml:"text"`
	Texts  []string          `yaml:"texts"`
	Flag   bool              `yaml:"flag"`
	Count  int               `yaml:"count"`
	Port   uint16            `yaml:"port"`
	Ratio  float64           `yaml:"ratio"`
	Wait   time.Duration     `yaml:"wait"`
	Waits  []time.Duration   `yaml:"waits"`
	Size   mta.Size          `yaml:"size"`
	Addr   netip.Addr        `yaml:"addr"`
	Level  slog.Level        `yaml:"level"`
	Nets   []netip.Prefix    `yaml:"nets"`
	Hosts  []host            `yaml:"hosts"`
	Named  map[string]inner  `yaml:"named"`
	Notes  map[string]string `yaml:"notes"`
	Inner  inner             `yaml:"inner"`
	Shared inner             `yaml:",inline"`
	Hidden string            `yaml:"-"`
}

type inner struct {
	Depth int    `yaml:"depth"`
	Label string `yaml:"label"`
}

// host is written as "name" or as {name: …, port: …}.
type host struct {
	Name string `yaml:"name"`
	Port uint16 `yaml:"port"`
}

func (h *host) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("a host is empty")
	}
	*h = host{string(b), 25}
	return nil
}

// read decodes and gives the faults as "line:column: key: text".
func read(t *testing.T, text string, into any) string {
	t.Helper()
	f, err := parser.ParseBytes([]byte(text), 0, parser.AllowDuplicateMapKey())
	if err != nil {
		t.Fatal(err)
	}
	d := newDecoder("F")
	d.value(f.Docs[0].Body, reflect.ValueOf(into).Elem(), "")
	return strings.ReplaceAll(strings.TrimPrefix(d.faults.sorted().Error(), "F:"), "\nF:", "\n")
}

func TestEachTypeIsRead(t *testing.T) {
	got := sample{Texts: []string{"the default"}, Shared: inner{Depth: 9}}
	faults := read(t, `
text: "010"
texts: [a, 'b c']
flag: true
count: -3
port: 65535
ratio: 0.5
wait: 1d12h
waits: [90s, 0, "15m"]
size: 64MiB
addr: 2001:db8::1
level: warn
nets: [192.0.2.1/24, "2001:db8::1"]
hosts:
  - mail.example.org
  - {name: other.example.org, port: 26}
named:
  example.org: &common
    depth: 1
    label: >-
      two
      words
  example.net:
    <<: *common
    depth: 2
  example.com: *common
notes: {a: b}
inner:
label: x
`, &got)
	if faults != "" {
		t.Fatal(faults)
	}
	want := sample{
		Text: "010", Texts: []string{"a", "b c"}, Flag: true, Count: -3, Port: 65535, Ratio: 0.5, Wait: 36 * time.Hour,
		Waits: []time.Duration{90 * time.Second, 0, 15 * time.Minute}, Size: 64 * mta.MiB, Addr: netip.MustParseAddr("2001:db8::1"),
		Level: slog.LevelWarn, Nets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
		Hosts: []host{{"mail.example.org", 25}, {"other.example.org", 26}},
		Named: map[string]inner{"example.org": {1, "two words"}, "example.net": {2, "two words"}, "example.com": {1, "two words"}},
		Notes: map[string]string{"a": "b"}, Shared: inner{9, "x"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAPortIsPartOfItsHostInEveryStyleOfList(t *testing.T) {
	want := []string{"mail.example.org:25", "192.0.2.1:26", "[2001:db8::1]:27", ":28"}
	for _, text := range []string{
		"texts: [mail.example.org:25, 192.0.2.1:26, '[2001:db8::1]:27', :28]",
		"{texts: [mail.example.org:25, 192.0.2.1:26, '[2001:db8::1]:27', ':28']}",
		"texts:\n  - mail.example.org:25\n  - 192.0.2.1:26\n  - '[2001:db8::1]:27'\n  - :28\n",
	} {
		var s sample
		if faults := read(t, text, &s); faults != "" || !slices.Equal(s.Texts, want) {
			t.Errorf("%s\ngot  %q (%s)\nwant %q", text, s.Texts, faults, want)
		}
	}
	var s sample
	if got := read(t, `{hosts: ["name":x]}`, &s); got != "" || s.Hosts[0].Name != "x" {
		t.Errorf("a quoted key needs no blank: %s %v", got, s.Hosts)
	}
}

func TestEachFaultNamesItsPlaceAndItsRemedy(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "txet: a", "1:1: txet: is not a known key; did you mean text?"},
		{"nothing like it", "inner:\n  quota: 1", "2:3: inner.quota: is not a known key; known here: depth, label"},
		{"hidden key", "hidden: a", "1:1: hidden: is not a known key; known here: text, texts, flag, count, port, ratio, wait, waits, size, addr, level, nets, hosts, named, notes, inner, depth, label"},
		{"duplicate", "text: a\ncount: 1\ntext: b\n", "3:1: text: is already given in line 1"},
		{"number for text", "text: 010", `1:7: text: want text: write it in quotes, "010"`},
		{"bool for text", "text: true", `1:7: text: want text: write it in quotes, "true"`},
		{"text for bool", "flag: yes", `1:7: flag: want true or false, not "yes"`},
		{"text for number", "count: many", `1:8: count: want a whole number, not "many"`},
		{"fraction", "count: 1.5", `1:8: count: want a whole number, not "1.5"`},
		{"octal", "count: 010", `1:8: count: want a whole number, not "010"`},
		{"too large", "port: 65536", `1:7: port: want a whole number, not "65536"`},
		{"negative", "port: -1", `1:7: port: want a whole number, not "-1"`},
		{"infinite", "ratio: .inf", `1:8: ratio: want a number, not ".inf"`},
		{"no unit", "wait: 90", `1:7: wait: "90" is not a duration: write 90s, 15m, 36h or 30d`},
		{"odd unit", "wait: 2 weeks", `1:7: wait: "2 weeks" is not a duration: write 90s, 15m, 36h or 30d`},
		{"bad size", "size: 64 megs", `1:7: size: "64 megs" is not a size (write 64MiB, 1.5GiB or a number of octets)`},
		{"bad level", "level: loud", `1:8: level: want debug, info, warn or error, not "loud"`},
		{"bad network", "nets: [192.0.2/24]", `1:8: nets[0]: want a network such as 192.0.2.0/24, not "192.0.2/24"`},
		{"list for text", "text: [a]", "1:7: text: want text, not a list"},
		{"mapping for text", "text:\n  a: b", "2:3: text: want text, not keys and values"},
		{"flow mapping for text", "text: {a: b}", "1:7: text: want text, not keys and values"},
		{"text for list", "texts: a", `1:8: texts: want a list such as [a, b], not "a"`},
		{"text for section", "inner: a", `1:8: inner: want keys and values, not "a"`},
		{"list for section", "inner: [a]", "1:8: inner: want keys and values, not a list"},
		{"mapping for a leaf struct", "addr: {a: b}", "1:7: addr: want text, not keys and values"},
		{"null", "text:\nwait: ~\ntexts:\n", "1:6: text: has no value: want text, or leave the key out for its default\n" +
			"2:7: wait: has no value: want a duration such as 90s, 15m, 36h or 30d, or leave the key out for its default\n" +
			"3:8: texts: has no value: want a list such as [a, b], or leave the key out for its default"},
		{"in a list", "waits: [1s, 5, 2s, x]", "1:13: waits[1]: \"5\" is not a duration: write 90s, 15m, 36h or 30d\n" +
			"1:20: waits[3]: \"x\" is not a duration: write 90s, 15m, 36h or 30d"},
		{"in a struct in a list", "hosts:\n  - a\n  - naem: b\n", "3:5: hosts[1].naem: is not a known key; did you mean name?"},
		{"a text form that refuses", "hosts: ['']", "1:9: hosts[0]: a host is empty"},
		{"in a map", "named:\n  example.org: {depth: x}\n", `2:24: named.example.org.depth: want a whole number, not "x"`},
		{"unknown anchor", "text: *nope", "1:7: text: nothing above is marked &nope"},
		{"an anchor in itself", "named: &a\n  x: {depth: *a}\n", "2:14: named.x.depth: nothing above is marked &a"},
		{"a merge of itself", "inner: &a\n  <<: *a\n", "2:7: inner: nothing above is marked &a"},
		{"tag", "text: !!str 1", "1:7: text: tags such as !!str have no meaning here"},
		{"merge of no mapping", "text: &a x\ninner:\n  <<: *a\n", `1:10: inner: << wants a mapping, not "x"`},
		{"odd key", "? a\n: b", "1:1: has a key that is not plain text"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s sample
			if got := read(t, tt.text, &s); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestEveryFaultIsReportedInTheOrderOfTheFile(t *testing.T) {
	var s sample
	got := read(t, "inner: {depth: x, lable: y}\ntxet: a\nwait: 5\nflag: true\nsize: -1\n", &s)
	if n := strings.Count(got, "\n") + 1; n != 5 || !strings.HasPrefix(got, "1:16:") || !strings.Contains(got, "\n5:7:") {
		t.Errorf("got %d faults:\n%s", n, got)
	}
	if !s.Flag {
		t.Error("what is right beside the faults was not read")
	}
}

func TestAMergedFaultIsSaidOnce(t *testing.T) {
	var s sample
	got := read(t, "named:\n  a: &x {depth: q}\n  b: {<<: *x}\n  c: *x\n", &s)
	if want := `2:17: named.a.depth: want a whole number, not "q"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDurations(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
	}{
		{"90s", 90 * time.Second}, {"15m", 15 * time.Minute}, {"36h", 36 * time.Hour}, {"30d", 30 * day}, {"1d12h", 36 * time.Hour},
		{"1h30m", 90 * time.Minute}, {"250ms", 250 * time.Millisecond}, {"0", 0}, {"0s", 0}, {"0d", 0}, {"1.5h", 90 * time.Minute},
	}
	for _, tt := range tests {
		got, err := parseDuration(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %v (%v), want %v", tt.text, got, err, tt.want)
		}
	}
	for _, s := range []string{"", "d", "5", "-5s", "1.5d", "-1d", "1d-1h", "1d+1h", "1dd", "1d5", "99999d", "1d2562047h", "s", "5 s", "1d 5s"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

func TestADurationIsReadBackAsItWasWritten(t *testing.T) {
	for _, d := range []time.Duration{0, 1, time.Second, 90 * time.Second, time.Minute, 90 * time.Minute, time.Hour, day, 30 * day, 36 * time.Hour, day + time.Millisecond} {
		if got, err := parseDuration(formatDuration(d)); err != nil || got != d {
			t.Errorf("%v is written %q and read %v (%v)", d, formatDuration(d), got, err)
		}
	}
}

func TestNearest(t *testing.T) {
	keys := []string{"recipients", "accept_all", "primaries", "dir"}
	tests := map[string]string{"recipient": "recipients", "acceptall": "accept_all", "primary": "primaries", "dri": "dir", "colour": "", "Dir": "dir"}
	for s, want := range tests {
		if got := nearest(s, keys); got != want {
			t.Errorf("%s: got %q, want %q", s, got, want)
		}
	}
}
