package policy

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"understudy/internal/mta"
)

var quiet = Deps{Log: slog.New(slog.DiscardHandler)}

func path(t testing.TB, s string) mta.Path {
	t.Helper()
	p, err := mta.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func loaded(t *testing.T, cfg Config, domains map[string]Domain, log *slog.Logger) *Policy {
	t.Helper()
	p, err := New(cfg, domains, Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// decide gives the recipient as text, or the reply.
func decide(t *testing.T, p *Policy, to string) string {
	t.Helper()
	r, err := p.Recipient(t.Context(), nil, path(t, to))
	if reply, ok := errors.AsType[*mta.Reply](err); ok {
		return reply.String()
	}
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	return r.Addr.String() + " -> " + r.Dest
}

func TestRecipientsAreTakenRefusedOrNotOurs(t *testing.T) {
	dir := t.TempDir()
	listed := filepath.Join(dir, "listed")
	write(t, listed, "alice@example.org\nsales+eu@example.org\n100%@example.org\n")
	cfg := DefaultConfig()
	cfg.Hostname = "mx2.mail.example.net"
	cfg.AlwaysTaken = []string{"Abuse"}
	p := loaded(t, cfg, map[string]Domain{
		"example.org":           {Recipients: listed},
		"example.net":           {AcceptAll: true},
		"xn--bcher-kva.example": {AcceptAll: true},
	}, slog.New(slog.DiscardHandler))

	const unknown, relay = "550 5.1.1 no such recipient at example.org", "550 5.7.1 relay not permitted: no mail for "
	const routed = "550 5.7.1 relay not permitted: the address names a way through "
	tests := []struct{ to, want string }{
		{"alice@example.org", "alice@example.org -> example.org"},
		{"ALICE@Example.Org.", "ALICE@Example.Org. -> example.org"},
		{"alice+list@example.org", "alice+list@example.org -> example.org"},
		{"alice+a+b@example.org", "alice+a+b@example.org -> example.org"},
		{"sales+eu@example.org", "sales+eu@example.org -> example.org"},
		{"sales@example.org", unknown},
		{"sales+us@example.org", unknown},
		{"+alice@example.org", unknown},
		{"alice-list@example.org", unknown},
		{"bob@example.org", unknown},
		{"PostMaster@example.org", "PostMaster@example.org -> example.org"},
		{"abuse@example.org", "abuse@example.org -> example.org"},
		{"postmaster", "postmaster@example.net -> example.net"},
		{"Postmaster@example.net", "Postmaster@example.net -> example.net"},
		{"whoever@example.net", "whoever@example.net -> example.net"},
		{"x@bücher.example", "x@bücher.example -> xn--bcher-kva.example"},
		{"x@XN--BCHER-KVA.example", "x@XN--BCHER-KVA.example -> xn--bcher-kva.example"},
		{"alice@sub.example.org", relay + "sub.example.org is taken here"},
		{"postmaster@elsewhere.example", relay + "elsewhere.example is taken here"},
		{"alice@[192.0.2.1]", relay + "that address is taken here"},
		{"<>", relay + "that address is taken here"},
		{"alice%elsewhere.example@example.org", routed + "example.org to somewhere else"},
		{"alice+x%elsewhere.example@example.org", routed + "example.org to somewhere else"},
		{"elsewhere.example!alice@example.net", routed + "example.net to somewhere else"},
		{`"alice@elsewhere.example"@example.net`, routed + "example.net to somewhere else"},
		{"100%@example.org", "100%@example.org -> example.org"},
	}
	for _, tt := range tests {
		if got := decide(t, p, tt.to); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.to, got, tt.want)
		}
	}
}

func TestABarePostmasterIsOfTheHostsOwnDomainElseOfTheFirst(t *testing.T) {
	domains := map[string]Domain{"example.org": {}, "mail.example.org": {}, "example.com": {}}
	tests := []struct{ hostname, want string }{
		{"mx2.example.org", "example.org"},
		{"mx2.mail.example.org", "mail.example.org"},
		{"Example.ORG", "example.org"},
		{"mx2.elsewhere.example", "example.com"},
		{"", "example.com"},
	}
	for _, tt := range tests {
		if got := postmasterDomain(tt.hostname, domains); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.hostname, got, tt.want)
		}
	}
	if got := postmasterDomain("mx2.example.org", nil); got != "" {
		t.Errorf("without domains: got %q", got)
	}
}

func TestBeforeTheListsAreReadNobodyIsRefusedForGood(t *testing.T) {
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Recipient(t.Context(), nil, path(t, "a@elsewhere.example"))
	if _, refused := errors.AsType[*mta.Reply](err); err == nil || refused {
		t.Errorf("got %v, want an error that is no reply", err)
	}
}

func TestAListThatCanNotBeReadRefusesTheStart(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	write(t, bad, "a@example.org\nb\n")
	p, err := New(DefaultConfig(), map[string]Domain{
		"example.org": {Recipients: bad},
		"example.net": {Recipients: filepath.Join(dir, "missing")},
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Load(t.Context())
	if faults, ok := errors.AsType[ListFaults](err); !ok || len(faults) != 2 {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{bad + ":2: ", filepath.Join(dir, "missing") + ": no such file or directory"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	if _, err := p.Recipient(t.Context(), nil, path(t, "a@example.org")); err == nil {
		t.Error("a recipient was taken")
	}
}

func TestAReloadKeepsTheOldListOfAFileThatCanNotBeRead(t *testing.T) {
	dir := t.TempDir()
	org, net := filepath.Join(dir, "org"), filepath.Join(dir, "net")
	write(t, org, "old@example.org\n")
	write(t, net, "old@example.net\n")
	domains := map[string]Domain{"example.org": {Recipients: org}, "example.net": {Recipients: net}}
	var logged bytes.Buffer
	p := loaded(t, DefaultConfig(), domains, slog.New(slog.NewTextHandler(&logged, nil)))

	write(t, org, "new@example.org\nbroken\n")
	write(t, net, "new@example.net\n")
	if err := p.Reload(t.Context(), DefaultConfig(), domains); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"old@example.org": "old@example.org -> example.org",
		"new@example.org": "550 5.1.1 no such recipient at example.org",
		"new@example.net": "new@example.net -> example.net",
		"old@example.net": "550 5.1.1 no such recipient at example.net",
	} {
		if got := decide(t, p, to); got != want {
			t.Errorf("%s: got %q, want %q", to, got, want)
		}
	}
	if got := logged.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, org+":2: ") {
		t.Errorf("the log says %q", got)
	}
}

func TestAReloadThatFailsChangesNothing(t *testing.T) {
	dir := t.TempDir()
	org := filepath.Join(dir, "org")
	write(t, org, "a@example.org\n")
	p := loaded(t, DefaultConfig(), map[string]Domain{"example.org": {Recipients: org}, "example.net": {AcceptAll: true}}, slog.New(slog.DiscardHandler))
	missing := filepath.Join(dir, "missing")
	tests := map[string]map[string]Domain{
		"a new domain without a list that can be read": {"example.com": {Recipients: missing}, "example.org": {AcceptAll: true}},
		"all accepted before, now a missing list":      {"example.net": {Recipients: missing}},
		"a domain that says nothing of its recipients": {"example.org": {}},
		"a domain that is none":                        {"Example.org": {AcceptAll: true}},
	}
	for name, domains := range tests {
		if err := p.Reload(t.Context(), DefaultConfig(), domains); err == nil {
			t.Errorf("%s: Reload succeeded", name)
		}
		if got, want := decide(t, p, "a@example.org"), "a@example.org -> example.org"; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		if got, want := decide(t, p, "b@example.org"), "550 5.1.1 no such recipient at example.org"; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestAReloadAddsAndRemovesDomains(t *testing.T) {
	p := loaded(t, DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, slog.New(slog.DiscardHandler))
	if err := p.Reload(t.Context(), DefaultConfig(), map[string]Domain{"example.net": {AcceptAll: true}}); err != nil {
		t.Fatal(err)
	}
	if got, want := decide(t, p, "a@example.net"), "a@example.net -> example.net"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := decide(t, p, "a@example.org"), "550 5.7.1 relay not permitted: no mail for example.org is taken here"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestValidateReportsEveryFault(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RecipientDelimiter, cfg.AlwaysTaken = "+a@", []string{"abuse", "a@b", ""}
	var got []string
	for _, f := range cfg.Validate() {
		got = append(got, f.Key)
	}
	if want := "recipient_delimiter recipient_delimiter always_taken[1] always_taken[2]"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if d := (&Domain{}); len(d.Validate()) != 1 {
		t.Error("a domain without recipients is no fault")
	}
	if d := (&Domain{Recipients: "x", AcceptAll: true}); len(d.Validate()) != 1 {
		t.Error("a list and accept_all together are no fault")
	}
	if _, err := New(cfg, nil, quiet); err == nil {
		t.Error("New took a faulty configuration")
	}
	def := DefaultConfig()
	if f := def.Validate(); len(f) != 0 {
		t.Errorf("the defaults have faults: %v", f)
	}
}

// The memory that a million recipients cost is held to what the package promises of set.
func TestAMillionRecipientsFitInLittleMemory(t *testing.T) {
	const n = 1_000_000
	file := filepath.Join(t.TempDir(), "list")
	write(t, file, million(n))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := loaded(t, DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}}, slog.New(slog.DiscardHandler))
	runtime.GC()
	runtime.ReadMemStats(&after)
	got := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.1f octets a recipient (a local part of 19)", got)
	if got > 40 {
		t.Errorf("%.1f octets a recipient, want at most 40", got)
	}
	if got, want := decide(t, p, "given.family0999999@example.org"), "given.family0999999@example.org -> example.org"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkRecipient(b *testing.B) {
	file := filepath.Join(b.TempDir(), "list")
	write(b, file, million(1_000_000))
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}}, quiet)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Load(b.Context()); err != nil {
		b.Fatal(err)
	}
	for name, to := range map[string]string{
		"listed": "given.family0123456@example.org", "mixed case": "Given.Family0123456@Example.org",
		"extension": "given.family0123456+x@example.org", "unknown": "nobody@example.org",
	} {
		to := path(b, to)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = p.Recipient(b.Context(), nil, to)
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	file := filepath.Join(b.TempDir(), "list")
	write(b, file, million(1_000_000))
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}}, quiet)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := p.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
