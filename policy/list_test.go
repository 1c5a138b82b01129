package policy

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/internal/mta"
)

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAListHoldsExactlyWhatItNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recipients.txt")
	write(t, file, "\ufeff# staff\r\n\r\n  Alice@Example.ORG\r\nbob@example.org # since May\n"+
		"carol@example.org\tOK\n<dave@example.org>\n\"e f\"@example.org x\n"+
		"jo\u0308rg@b\u00fccher.example\nx@xn--bcher-kva.example\n@example.net\nalice@example.org\nsomeone@elsewhere.example")
	sets, err := readList(t.Context(), file, []string{"example.org", "xn--bcher-kva.example", "example.net"}, slog.New(slog.DiscardHandler))
	if len(err) > 0 {
		t.Fatal(err)
	}
	tests := []struct {
		domain, local string
		want          bool
	}{
		{"example.org", "alice", true},
		{"example.org", "ALICE", true},
		{"example.org", "bob", true},
		{"example.org", "carol", true},
		{"example.org", "dave", true},
		{"example.org", "e f", true},
		{"example.org", "e", false},
		{"example.org", "", false},
		{"example.org", "someone", false},
		{"xn--bcher-kva.example", "j\u00d6rg", true},
		{"xn--bcher-kva.example", "x", true},
		{"xn--bcher-kva.example", "alice", false},
		{"example.net", "whoever", true},
	}
	for _, tt := range tests {
		if got := sets[tt.domain].has(fold(tt.local)); got != tt.want {
			t.Errorf("%s at %s: listed is %v, want %v", tt.local, tt.domain, got, tt.want)
		}
	}
	if n := sets["example.org"].n; n != 5 {
		t.Errorf("example.org has %d recipients, want 5: a repeated one counts once", n)
	}
}

func TestAFaultOfAListNamesFileAndLine(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"bare local part", "a@example.org\nbob\n", `F:2: path "bob": no domain`},
		{"bare postmaster", "postmaster\n", `F:1: "postmaster" has no domain: write user@example.org or @example.org`},
		{"null path", "a@example.org\n\n<>\n", `F:3: "<>" has no domain: write user@example.org or @example.org`},
		{"two addresses", "a@example.org b@example.org\n", `F:1: "b@example.org" follows the address: write one address a line`},
		{"bad domain", "a@exa mple.org\n@-x.org", "F:2: domain \"-x.org\": label \"-x\" begins or ends with a hyphen"},
		{"control character", "\"a\x01\"@example.org\n", "F:1: local part has the control character U+0001"},
		{"not UTF-8", "\xff@example.org\n", "F:1: is not UTF-8"},
		{"long line", "a@example.org\n" + strings.Repeat("x", maxListLine+1), "F:2: is longer than 16KiB"},
		{"empty", "# nobody\n", "F: names no recipient at example.org"},
		{"every fault", "a\nb\n", "F:1: path \"a\": no domain\nF:2: path \"b\": no domain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "list")
			write(t, file, tt.text)
			_, err := readList(t.Context(), file, []string{"example.org"}, slog.New(slog.DiscardHandler))
			if got := strings.ReplaceAll(err.Error(), file, "F"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAListOfGarbageIsGivenUpEarly(t *testing.T) {
	l := newList("F", []string{"example.org"})
	if got := len(l.parse(t.Context(), strings.NewReader(strings.Repeat("x\n", 1000)), form{})); got != maxListFaults+1 {
		t.Errorf("%d faults, want %d", got, maxListFaults+1)
	}
}

func TestWhatIsNoFileIsNoList(t *testing.T) {
	for _, file := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing"), os.DevNull} {
		if _, faults := readList(t.Context(), file, []string{"example.org"}, slog.New(slog.DiscardHandler)); len(faults) != 1 {
			t.Errorf("%s was read as a list", file)
		}
	}
}

func TestReadingAListEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := newList("F", []string{"example.org"})
	if len(l.parse(ctx, strings.NewReader("a@example.org\n"), form{})) != 1 {
		t.Error("parse went on")
	}
}

// A line either makes a fault or is read in the one way that its writer can have meant.
func FuzzParseList(f *testing.F) {
	for _, s := range []string{
		"a@example.org\n", "@example.org", "# c\n\n\"a b\"@example.org OK\n", "jörg@bücher.example\n", "a\\@example.org",
		"\"a\\\"\"@example.org x", "\ufeffa@example.org\r\n", "<@x:a@example.org>", "a@[192.0.2.1]", "a@example.org b@c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := newList("F", []string{"example.org", "xn--bcher-kva.example"})
		if len(l.parse(t.Context(), strings.NewReader(text), form{})) > 0 {
			return
		}
		sets, _ := l.sets()
		for domain, s := range sets {
			for member := range s.members() {
				local := string(member)
				if !s.has(local) {
					t.Errorf("%q is in the arena and not in the set", local)
				}
				p, err := mta.MakePath(local, domain)
				if err != nil {
					t.Errorf("%q was taken as a local part: %v", local, err)
				}
				line := p.String()
				again := newList("F", []string{domain})
				if faults := again.parse(t.Context(), strings.NewReader(line), form{}); len(faults) > 0 {
					t.Fatalf("%q is not read back: %v", line, faults)
				}
				back, faults := again.sets()
				if len(faults) > 0 || !back[domain].has(local) {
					t.Errorf("%q is read back as another recipient", line)
				}
			}
		}
	})
}

func million(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "given.family%07d@example.org\n", i)
	}
	return b.String()
}
