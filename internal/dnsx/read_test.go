package dnsx

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestResolvConfIsReadAgainWhenItChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(s string, mtime time.Time) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	s, err := newServers(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.file = file
	steps := []struct {
		write, want string
	}{
		{"", "127.0.0.1:53"},
		{"nameserver 192.0.2.1\nnameserver ::1\n", "192.0.2.1:53"},
		{"nameserver 192.0.2.2\n", "192.0.2.2:53"},
		{"", "192.0.2.2:53"}, // an emptied file leaves the old list
	}
	for i, st := range steps {
		now = now.Add(recheck)
		write(st.write, now)
		if got := s.order(now)[0].String(); got != st.want {
			t.Errorf("step %d: %s is asked first, want %s", i, got, st.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	m := new(dns.Msg).SetQuestion("example.org.", dns.TypeMX)
	m.Response = true
	for _, s := range []string{"example.org. 5 CNAME a.", "a. 5 MX 10 b.", "example.org. 5 TXT x"} {
		rr, err := dns.NewRR(s)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil || len(m.Question) == 0 {
			return
		}
		q := question{name: m.Question[0].Name, qtype: m.Question[0].Qtype}
		a, more, err := read(q, m)
		if err == nil && len(a.rrs) == 0 && a.err == nil && more == "" {
			t.Error("an answer that says nothing at all")
		}
	})
}

func TestAPlainNameTakesTheShortWayToTheSameQuestion(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := strings.Repeat(label+".", 3) + strings.Repeat("b", 61)
	for _, s := range []string{"example.org", "_dmarc.example.org.", "a", "1.0.0.127.in-addr.arpa", label + ".test", long} {
		short, ok := newQuestion(s, dns.TypeTXT)
		if !ok || !isPlain(strings.TrimSuffix(s, ".")) {
			t.Errorf("%q is not plain", s)
		}
		if around, ok := newQuestion(strings.ToUpper(s), dns.TypeTXT); !ok || around != short { // capitals take the long way
			t.Errorf("%q: %v and %v", s, short, around)
		}
	}
	for _, s := range []string{"", ".", "a..b", ".a", "a.", "A", "a b", label + "a.test", long + "b"} {
		if isPlain(s) {
			t.Errorf("%q is plain", s)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"example.org", "a b\\c.test", "..", "\x00.test", "ü.de"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, ok := newQuestion(s, dns.TypeTXT)
		if !ok {
			return
		}
		b, err := new(dns.Msg).SetQuestion(q.name, q.qtype).Pack()
		if err != nil {
			t.Fatalf("%q became %q, which can't be sent: %v", s, q.name, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		if !answers(q, &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Question: m.Question}) {
			t.Errorf("%q was sent as %q", q.name, m.Question[0].Name)
		}
	})
}
