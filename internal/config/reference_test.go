package config

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"understudy/configs"
	"understudy/policy"
)

// reference reads the annotated file and the place of each of its keys.
func reference(t *testing.T) (*Config, *decoder) {
	t.Helper()
	c, d := Default(), newDecoder("configs/understudy.yaml")
	if !d.document(configs.Reference, c) || len(d.faults) > 0 {
		t.Fatal(d.faults)
	}
	return c, d
}

// whole is the default with what a file must give.
func whole() *Config {
	c := Default()
	c.Hostname = "mx2.example.org"
	c.Domains = Domains{"example.org": Domain{Policy: policy.Domain{Recipients: "recipients.txt"}}}
	return c
}

func TestTheReferenceHasEveryKeyWithItsDefault(t *testing.T) {
	c, d := reference(t)
	got, want := leaves(c), leaves(whole())
	for key := range want {
		if d.places[key] == nil {
			t.Errorf("%s is missing", key)
		}
	}
	for key, value := range got {
		if value != want[key] {
			t.Errorf("%s is %s, its default is %s", key, value, want[key])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
	if _, err := Parse("configs/understudy.yaml", configs.Reference); err != nil {
		t.Error(err)
	}
}

func TestTheReferenceExplainsEveryKey(t *testing.T) {
	_, d := reference(t)
	lines := strings.Split(string(configs.Reference), "\n")
	for key, at := range d.places {
		if strings.Contains(key, "[") || key == "domains.example.org" {
			continue
		}
		if !strings.HasPrefix(strings.TrimSpace(lines[at.Line-2]), "#") {
			t.Errorf("no comment stands above %s", key)
		}
	}
	for i, l := range lines {
		if len([]rune(l)) > 120 {
			t.Errorf("line %d is longer than a screen is wide", i+1)
		}
	}
}

func TestTheReferencesSectionsAreInTheOrderOfTheType(t *testing.T) {
	_, d := reference(t)
	var got, want []string
	for _, f := range fieldsOf(reflect.TypeFor[Config]()) {
		got, want = append(got, f.name), append(want, f.name)
	}
	slices.SortFunc(got, func(a, b string) int { return d.places[a].Line - d.places[b].Line })
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheEmbeddedDefaultNeedsNothing(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c, err := Parse("embedded configuration", configs.Default)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.paths() {
		if *p != "" && !strings.HasPrefix(*p, dir+"/understudy-data/") {
			t.Errorf("%s is outside of the data folder", *p)
		}
	}
	for _, l := range c.Inbound.Listen {
		if l.Address != "127.0.0.1:2525" {
			t.Errorf("it listens on %s", l.Address)
		}
	}
	d := c.Domains["example.org"]
	if !d.Policy.AcceptAll || !slices.Equal(d.Healthprobe.Primaries, []string{"127.0.0.1:2526"}) {
		t.Errorf("example.org is %+v", d)
	}
}

func TestTheExamplesAreGood(t *testing.T) {
	files, err := filepath.Glob("../../configs/examples/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("examples: %v (%v)", files, err)
	}
	for _, file := range files {
		c, err := Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		p, err := policy.New(c.Policy, c.PolicyDomains(), policy.Deps{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Error(err)
			continue
		}
		if err := p.Load(t.Context()); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	b, err := os.ReadFile("../../configs/examples/smallest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("\n")); n != 4 {
		t.Errorf("the smallest configuration has %d lines, want 4", n)
	}
}

func TestTheReferenceShowsEveryKeyOfASource(t *testing.T) {
	_, section, _ := strings.Cut(string(configs.Reference), "\n  # Lists of recipients")
	section, _, _ = strings.Cut(section, "\n  sources: {}")
	var b strings.Builder
	for line := range strings.Lines(section) {
		if rest, ok := strings.CutPrefix(line, "  #   "); ok && !strings.HasPrefix(rest, "  file:") && !strings.HasPrefix(rest, "  command:") {
			b.WriteString("    " + rest)
		}
	}
	c := Default()
	d := newDecoder("F")
	if !d.document([]byte("policy:\n  sources:\n"+b.String()), c) || len(d.faults) > 0 {
		t.Fatal(d.faults)
	}
	shown, def := c.Policy.Sources["staff"], policy.DefaultSource()
	def.URL, def.LDAP.URL, def.LDAP.Base, def.SQL.Driver = shown.URL, shown.LDAP.URL, shown.LDAP.Base, shown.SQL.Driver
	if !reflect.DeepEqual(shown, def) {
		t.Errorf("shown\n%+v\ndefaults\n%+v", shown, def)
	}
	for key := range leavesOf(shown) {
		if d.places["policy.sources.staff."+key] == nil && key != "file" && key != "command" {
			t.Errorf("%s is not shown", key)
		}
	}
}

func leavesOf(v any) map[string]string {
	m := map[string]string{}
	addLeaves(m, reflect.ValueOf(v), "")
	return m
}
