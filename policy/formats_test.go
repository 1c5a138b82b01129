package policy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

func parsed(t *testing.T, f form, text string) (*content, string) {
	t.Helper()
	l := newList("F", []string{"example.org"})
	l.parse(t.Context(), strings.NewReader(text), f)
	if len(l.faults) > 0 {
		return nil, l.faults.Error()
	}
	return &content{sets: l.index()}, ""
}

func TestFormatsOfLists(t *testing.T) {
	postfix, table := form{format: Postfix}, form{format: CSV, column: "mail", separator: ";"}
	tests := []struct {
		name  string
		form  form
		text  string
		names string // what is listed, sorted, or the fault
	}{
		{"a table", postfix, "# relay\nalice@example.org OK\n\nBob@example.org\tx\n  goes on carol@example.org\ndave@example.org real@example.org\n", "alice bob dave"},
		{"a dump", postfix, "alice@example.org\tOK\na b@example.org\tOK\n\"c d@example.org\"\tx\n", "a b,alice,c d"},
		{"quotes of the address", postfix, "\"a b\"@example.org OK\n", "a b"},
		{"quotes of the key", postfix, "\"a@example.org\" OK\n", "a"},
		{"a key without domain", postfix, "postmaster OK\n@example.org OK\n", "*"},
		{"a quote without end", postfix, "\"a@example.org OK\n", "F:1: has a quote without its end"},
		{"a bad key", postfix, "a@-x OK\n", `F:1: domain "-x": label "-x" begins or ends with a hyphen`},

		{"columns", table, "\ufeffName;Mail\nA;a@example.org\nB;\n\"C\n\";c@example.org\n", "a c"},
		{"of Exchange", table, "Mail\n\"SMTP:a@example.org,smtp:b@example.org,X500:/o=Org/cn=x y,sip:c@example.org\"\n\"smtp:d@example.org X500:/o=First Org/cn=x smtp:e@example.org\"\n", "a b d e"},
		{"no such column", table, "Name;E-Mail\n", `F:1: has no column "mail": there are ["Name" "E-Mail"]`},
		{"a short row", table, "Name;Mail\nA;a@example.org\nB\n", "F:3: wrong number of fields"},
		{"an odd quote", table, "Mail\na\"b@example.org\n", "F:2: bare \" in non-quoted-field"},
		{"no address", table, "Mail\nalice\n", `F:2: path "alice": no domain`},
		{"nothing", table, "", "F:1: has no line that names the columns: EOF"},

		{"patterns", form{format: Patterns}, "# staff\n[a-z]+\\.[a-z]+@example\\.org\n", ""},
		{"a bad pattern", form{format: Patterns}, "a(\n", "F:1: error parsing regexp: missing closing ): `a(`"},
		{"a pattern that would escape", form{format: Patterns}, "a)|(b\n", "F:1: error parsing regexp: unexpected ): `a)|(b`"},
	}
	for _, tt := range tests {
		c, got := parsed(t, tt.form, tt.text)
		if c != nil {
			var names []string
			for m := range c.sets["example.org"].members() {
				names = append(names, string(m))
			}
			slices.Sort(names)
			if c.takesAll("example.org") {
				names = append(names, "*")
			}
			sep := " "
			if strings.Contains(tt.names, ",") {
				sep = ","
			}
			got = strings.Join(names, sep)
		}
		if got != tt.names {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.names)
		}
	}
}

func TestAPatternMustMatchTheWholeAddress(t *testing.T) {
	c, fault := parsed(t, form{format: Patterns}, "[a-z]+\\.[a-z]+@example\\.org\nx|y@example\\.org\n")
	if fault != "" {
		t.Fatal(fault)
	}
	for local, want := range map[string]bool{"a.b": true, "a.b.c": false, "ab": false, "x": false, "y": true, "xy": false, "a.b@example.org\n": false} {
		if got := c.sets["example.org"].has(local); got != want {
			t.Errorf("%q: %v, want %v", local, got, want)
		}
	}
}

// Each list is read without a panic, whatever it holds, and gives only what can be the recipient of a message and
// what the copy on disk gives back.
func FuzzFormats(f *testing.F) {
	for _, s := range []string{
		"\"a b\"@example.org\tx\n", "a b@example.org\tOK\n", "mail\n\"SMTP:a@example.org X500:/o=x y smtp:b@example.org\"\n", "a+@example.org\n",
		"mail;x\na@example.org;\n", "\"a\\\"@example.org\" OK\n", "@example.org\n", "a(b)*@example\\.org\n", " x\n\ty\n#\n", "\"\"@example.org\n",
	} {
		for format := range byte(4) {
			f.Add(format, s)
		}
	}
	f.Fuzz(func(t *testing.T, format byte, text string) {
		l := newList("F", []string{"example.org", "xn--bcher-kva.example"})
		if len(l.parse(t.Context(), strings.NewReader(text), form{Format(format % 4), "mail", ";"})) > 0 {
			return
		}
		c, err := newContent(l, tag{}, noTime)
		if err != nil {
			return
		}
		for domain, s := range c.sets {
			for m := range s.members() {
				if _, err := mta.MakePath(string(m), domain); err != nil {
					t.Errorf("%q was taken as a local part: %v", m, err)
				}
			}
		}
		var kept strings.Builder
		if err := writeCopy(&kept, "s", c); err != nil {
			t.Fatal(err)
		}
		back, err := readCopy(strings.NewReader(kept.String()), "s")
		if err != nil {
			t.Fatalf("a copy is not read back: %v\n%q", err, kept.String())
		}
		for domain, s := range c.sets {
			if back.count(domain) != c.count(domain) {
				t.Errorf("%s: %d are read back of %d", domain, back.count(domain), c.count(domain))
			}
			for m := range s.members() {
				if !back.sets[domain].names(string(m)) {
					t.Errorf("%q is not read back", m)
				}
			}
		}
	})
}

// A copy is read without a panic, whatever it holds.
func FuzzReadCopy(f *testing.F) {
	l := newList("s", []string{"example.org"})
	l.parse(context.Background(), strings.NewReader("a@example.org\nb@example.org\n"), form{})
	c, err := newContent(l, tag{ETag: "x"}, noTime)
	if err != nil {
		f.Fatal(err)
	}
	var b strings.Builder
	if err := writeCopy(&b, "s", c); err != nil {
		f.Fatal(err)
	}
	f.Add(b.String())
	f.Add(`{"understudy_recipients":1,"source":"s","domains":[{"name":"example.org","n":-1}]}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = readCopy(strings.NewReader(text), "s")
	})
}

// A remembered entry is read back as it was written, and nothing else is believed.
func FuzzRestore(f *testing.F) {
	f.Add("example.org a", encodeState(1, byte(ByRcpt), 1_800_000_000, 0))
	f.Add("example.org ", encodeState(byte(tells), 0, 1_800_000_000, 0))
	f.Fuzz(func(t *testing.T, key string, val []byte) {
		k, ok := parseStateKey(key)
		if !ok {
			return
		}
		l := newLearned(DefaultConfig().Learned, nil)
		if l.restore(k, val, noTime) != nil {
			return
		}
		if k.String() != key {
			t.Errorf("%q became %q", key, k)
		}
		if c := l.change(k, noTime); c.val != nil && string(c.val) != string(val) {
			t.Errorf("%x became %x", val, c.val)
		}
	})
}

var noTime = time.Unix(1_800_000_000, 0)
