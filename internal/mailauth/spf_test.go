package mailauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/miekg/dns"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

var _ Resolver = (*dnsx.Resolver)(nil)

// resolver asks a server over real packets.
func resolver(t testing.TB, z dnstest.Zones) *dnsx.Resolver {
	t.Helper()
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers = []string{dnstest.New(t, z).Addr()}
	cfg.Timeout, cfg.Tries = 150*time.Millisecond, 1
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func verifier(t testing.TB, r Resolver) *Verifier {
	t.Helper()
	v, err := New(DefaultConfig(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// suite is one of the test suite of RFC 7208 that the SPF library's module brings.
type suite struct {
	Description string               `yaml:"description"`
	Tests       map[string]suiteTest `yaml:"tests"`
	Zones       map[string][]any     `yaml:"zonedata"`
}

type suiteTest struct {
	Helo     string `yaml:"helo"`
	Host     string `yaml:"host"`
	MailFrom string `yaml:"mailfrom"`
	Result   any    `yaml:"result"`
	Skip     string `yaml:"skip"`
}

// module is the folder of a module in the cache.
func module(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil || len(strings.TrimSpace(string(out))) == 0 {
		t.Fatalf("where is %s? %v", path, err)
	}
	return strings.TrimSpace(string(out))
}

// The suite of RFC 7208, over real packets through our resolver.
func TestTheSuiteOfRFC7208Passes(t *testing.T) {
	f, err := os.Open(filepath.Join(module(t, "blitiri.com.ar/go/spf"), "testdata", "rfc7208-tests.yml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run, skipped := 0, 0
	for dec := yaml.NewDecoder(f); ; {
		var s suite
		if err := dec.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		v := verifier(t, resolver(t, s.zones(t)))
		for name, test := range s.Tests {
			if test.Skip != "" {
				skipped++
				continue
			}
			run++
			t.Run(name, func(t *testing.T) {
				local, domain, found := strings.Cut(test.MailFrom, "@")
				from := mta.Path{Local: local, Domain: domain}
				if !found {
					from = mta.Path{Domain: local}
				}
				if local == "" && found { // "@example.org" stands for postmaster there (RFC 7208, 4.3)
					from.Local = "postmaster"
				}
				peer := mta.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(test.Host), 25), Helo: test.Helo}
				got, _ := v.SPF(t.Context(), peer, from)
				if !slices.Contains(words(test.Result), got.Result) {
					t.Errorf("%s from %q, HELO %s: got %s (%s), want %v", test.Host, test.MailFrom, test.Helo, got.Result, got.Reason, test.Result)
				}
			})
		}
	}
	if run < 150 {
		t.Errorf("only %d cases were run, %d skipped", run, skipped)
	}
	t.Logf("%d cases run, %d skipped by the suite's own mark", run, skipped)
}

// words makes a list of one thing or many.
func words(v any) []string {
	switch v := v.(type) {
	case []any:
		var list []string
		for _, e := range v {
			list = append(list, fmt.Sprint(e))
		}
		return list
	case nil:
		return nil
	}
	return []string{fmt.Sprint(v)}
}

// zones are the suite's in the form of dnstest.
func (s *suite) zones(t *testing.T) dnstest.Zones {
	t.Helper()
	z := dnstest.Zones{}
	for name, records := range s.Zones {
		name = escaped(t, strings.TrimSuffix(name, "."))
		lines := []string{}
		var old []string // records of the type SPF, which stand for TXT where there is none
		hasTXT := false
		for _, r := range records {
			if word, ok := r.(string); ok {
				if word == "TIMEOUT" {
					word = "SERVFAIL" // as well unknown, and at once
				}
				lines = append(lines, word)
				continue
			}
			for kind, value := range r.(map[string]any) {
				switch kind {
				case "TXT":
					hasTXT = true
					if w := words(value); !slices.Equal(w, []string{"NONE"}) {
						lines = append(lines, txt(w))
					}
				case "SPF":
					old = append(old, txt(words(value)))
				case "MX":
					w := words(value)
					lines = append(lines, "MX "+w[0]+" "+fqdn(w[1]))
				case "PTR", "CNAME":
					lines = append(lines, kind+" "+fqdn(words(value)[0]))
				case "A", "AAAA":
					lines = append(lines, kind+" "+words(value)[0])
				case "TIMEOUT", "SERVFAIL":
					lines = append(lines, "SERVFAIL")
				case "CNAMELOOP":
					lines = append(lines, "CNAME "+fqdn(name))
				default:
					t.Fatalf("%s: what is %s?", name, kind)
				}
			}
		}
		if !hasTXT {
			lines = append(lines, old...)
		}
		z[name] = lines
	}
	return z
}

// escaped is a name as it comes off the wire.
func escaped(t *testing.T, name string) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []byte(name) {
		if c == '.' || c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, `\%03d`, c)
	}
	var wire [255]byte
	if _, err := dns.PackDomainName(dns.Fqdn(b.String()), wire[:], 0, nil, false); err != nil {
		return name // nobody can ask for it
	}
	name, _, err := dns.UnpackDomainName(wire[:], 0)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func fqdn(name string) string {
	if name == "" {
		return "."
	}
	return strings.TrimSuffix(name, ".") + "."
}

// txt is a TXT record line, any octet escaped.
func txt(parts []string) string {
	var b strings.Builder
	b.WriteString("TXT")
	for _, p := range parts {
		b.WriteString(` "`)
		for _, c := range []byte(p) {
			fmt.Fprintf(&b, `\%03d`, c)
		}
		b.WriteString(`"`)
	}
	return b.String()
}

func TestSPFAsksForBothIdentities(t *testing.T) {
	z := dnstest.Zones{
		"example.net": {`TXT "v=spf1 ip4:192.0.2.10 -all"`}, "client.example.net": {`TXT "v=spf1 -all"`},
		"local.example.net": {`TXT "v=spf1 exists:%{l}.ok.example.net -all"`}, "a=b.ok.example.net": {"A 127.0.0.2"},
		"numeric.example.net": {`TXT "v=spf1 a:192.0.2.10 -all"`}, "down.example.net": {"SERVFAIL"},
	}
	v := verifier(t, memory(t, z))
	none := mta.AuthResult{Result: "none"}
	result := func(r, d string) mta.AuthResult { return mta.AuthResult{Result: r, Domain: d} }
	tests := []struct {
		name, helo string
		from       mta.Path
		spf, want  mta.AuthResult
	}{
		{"both", "client.example.net", mta.Path{Local: "bob", Domain: "Example.NET"}, result("pass", "example.net"), result("fail", "client.example.net")},
		{"the null reverse-path", "client.example.net", mta.Path{}, result("fail", "client.example.net"), result("fail", "client.example.net")},
		{"nothing to ask for", "[192.0.2.10]", mta.Path{}, none, none},
		{"a HELO of one label", "localhost", mta.Path{Local: "bob", Domain: "[192.0.2.10]"}, none, none},
		{"an @ in the local part", "x y", mta.Path{Local: "a@b", Domain: "local.example.net"}, result("pass", "local.example.net"), none},
		{"an address for a name", "x", mta.Path{Local: "a", Domain: "numeric.example.net"}, result("fail", "numeric.example.net"), none},
		{"no answer", "x", mta.Path{Local: "a", Domain: "down.example.net"}, result("temperror", "down.example.net"), none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peer := mta.Peer{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.10]:25"), Helo: tt.helo}
			spf, helo := v.SPF(t.Context(), peer, tt.from)
			if strings.Contains(spf.Reason, "192.0.2.53") {
				t.Errorf("the reason tells of our resolver: %s", spf.Reason)
			}
			spf.Reason, helo.Reason = "", ""
			if spf != tt.spf || helo != tt.want {
				t.Errorf("got %+v and %+v, want %+v and %+v", spf, helo, tt.spf, tt.want)
			}
		})
	}
}

func TestSPFEndsInTime(t *testing.T) {
	cfg := DefaultConfig()
	cfg.SPFTimeout = 50 * time.Millisecond
	v, err := New(cfg, silent{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	spf, helo := v.SPF(t.Context(), mta.Peer{Addr: netip.MustParseAddrPort("192.0.2.10:25"), Helo: "client.example.net"}, mta.Path{Local: "a", Domain: "example.net"})
	if spf.Result != "temperror" || helo.Result != "temperror" || time.Since(begin) > 2*time.Second {
		t.Errorf("got %+v and %+v after %v", spf, helo, time.Since(begin))
	}
}

func TestSPFFindings(t *testing.T) {
	for _, tt := range []struct{ spf, helo, want string }{
		{"pass", "pass", ""}, {"none", "none", ""}, {"neutral", "softfail", ""}, {"temperror", "temperror", ""}, {"", "", ""},
		{"fail", "none", "spf:fail"}, {"softfail", "none", "spf:softfail"}, {"permerror", "none", "spf:permerror"},
		{"pass", "fail", "spf-helo:fail"}, {"fail", "fail", "spf:fail spf-helo:fail"},
	} {
		var names []string
		for _, f := range SPFFindings(mta.AuthResult{Result: tt.spf, Domain: "a.example"}, mta.AuthResult{Result: tt.helo, Domain: "b.example"}) {
			names = append(names, f.Name)
			if f.Action != mta.Accept || f.Weight <= 0 || f.Text == "" {
				t.Errorf("got %+v", f)
			}
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s, %s: got %q, want %q", tt.spf, tt.helo, got, tt.want)
		}
	}
	same := mta.AuthResult{Result: "fail", Domain: "a.example"}
	if f := SPFFindings(same, same); len(f) != 1 {
		t.Errorf("one thing is said twice: %+v", f)
	}
}

// The libraries look at nothing but a bare *net.DNSError.
func TestErrorsHaveTheOneTypeThatLibrariesKnow(t *testing.T) {
	for _, tt := range []struct {
		err                 error
		notFound, temporary bool
	}{
		{dnsx.ErrNoName, true, false},
		{fmt.Errorf("wrapped: %w", dnsx.ErrNoData), true, false},
		{errors.New("anything"), false, true},
		{context.DeadlineExceeded, false, true},
		{&net.DNSError{IsNotFound: true}, true, false},
		{fmt.Errorf("wrapped: %w", &net.DNSError{IsTemporary: true}), false, true},
		{&net.DNSError{IsTimeout: true}, false, true},
	} {
		d, ok := bare(tt.err, "name").(*net.DNSError)
		if !ok || d.IsNotFound != tt.notFound || d.Temporary() != tt.temporary {
			t.Errorf("%v: got %#v", tt.err, d)
		}
	}
	if bare(nil, "name") != nil {
		t.Error("no error became one")
	}
}
