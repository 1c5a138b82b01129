package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/filter"
	"understudy/internal/mta"
)

// world is what the DNS says in these tests. 192.0.2.10 is the host of a good sender, 192.0.2.66 that of a bad one.
func world() dnstest.Zones {
	return dnstest.Zones{
		"10.2.0.192.in-addr.arpa":   {"PTR mail.good.example."},
		"mail.good.example":         {"A 192.0.2.10", "TXT \"v=spf1 a -all\""},
		"good.example":              {"MX 10 mail.good.example.", "TXT \"v=spf1 mx -all\""},
		"nullmx.example":            {"MX 0 ."},
		"onlya.example":             {"A 192.0.2.10"},
		"onlytxt.example":           {"TXT \"hello\""},
		"badmx.example":             {"MX 10 192.0.2.1."},
		"servfail.example":          {"SERVFAIL"},
		"66.2.0.192.in-addr.arpa":   {"PTR liar.example."},
		"liar.example":              {"A 192.0.2.1"},
		"67.2.0.192.in-addr.arpa":   {"SERVFAIL"},
		"68.2.0.192.in-addr.arpa":   {"PTR servfail.example."},
		"69.2.0.192.in-addr.arpa":   {"PTR cpe-192-0-2-69.isp.example."},
		"example.org":               {"MX 10 mx1.example.org.", "TXT \"v=spf1 ip4:198.51.100.7 -all\""},
		"mx1.example.org":           {"A 198.51.100.25"},
		"soft.example":              {"MX 10 mx1.example.org.", "TXT \"v=spf1 ip4:198.51.100.7 ~all\""},
		"nospf.example":             {"MX 10 mx1.example.org."},
		"troubled.example":          {"MX 10 mx1.example.org.", "TXT \"v=spf1 include:servfail.example -all\""},
		"strict.example":            {"MX 10 mail.good.example."},
		"_dmarc.strict.example":     {"TXT \"v=DMARC1; p=reject\""},
		"held.example":              {"MX 10 mail.good.example."},
		"_dmarc.held.example":       {"TXT \"v=DMARC1; p=quarantine\""},
		"2.0.0.127.bl.example":      {"A 127.0.0.2"},
		"66.2.0.192.bl.example":     {"A 127.0.0.2"},
		"2.0.0.127.wl.example":      {"A 127.0.0.2"},
		"10.2.0.192.wl.example":     {"A 127.0.0.2"},
		"2.0.0.127.broken.example":  {"SERVFAIL"},
		"66.2.0.192.broken.example": {"A 127.0.0.2"},
	}
}

func resolving(t testing.TB, z dnstest.Zones) (*dnsx.Resolver, *dnstest.Server) {
	t.Helper()
	srv := dnstest.New(t, z)
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers, cfg.Timeout, cfg.Tries = []string{srv.Addr()}, 100*time.Millisecond, 1
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, srv
}

// stand is a policy whose domains take every recipient, before which mail stands.
type stand struct {
	*Policy
	dns *dnstest.Server
	log *bytes.Buffer
}

func judgeWith(t testing.TB, z dnstest.Zones, change func(*Config, map[string]Domain)) *stand {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Hostname = "mx2.example.net"
	domains := map[string]Domain{}
	for _, d := range []string{"example.org", "soft.example", "nospf.example", "troubled.example"} {
		domains[d] = Domain{AcceptAll: true}
	}
	if change != nil {
		change(&cfg, domains)
	}
	r, srv := resolving(t, z)
	var log bytes.Buffer
	p, err := New(cfg, domains, Deps{Log: slog.New(slog.NewTextHandler(&log, nil)), Resolver: r, State: &tables{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &stand{p, srv, &log}
}

// greeted is an envelope of a client with a HELO name and a reverse-path.
func greeted(t testing.TB, client, helo, sender string) *mta.Envelope {
	t.Helper()
	env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: path(t, sender)}
	env.Peer = mta.Peer{
		Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 40000), Local: netip.MustParseAddrPort("203.0.113.2:25"), Helo: helo, Proto: "ESMTP",
	}
	if client == "192.0.2.10" {
		env.Peer.Name = "mail.good.example"
	}
	return env
}

func good(t testing.TB) *mta.Envelope {
	return greeted(t, "192.0.2.10", "mail.good.example", "alice@good.example")
}

func names(findings []mta.Finding) string {
	var all []string
	for _, f := range findings {
		all = append(all, f.Name)
	}
	return strings.Join(all, " ")
}

func mailOf(s string) mta.Content {
	s = strings.ReplaceAll(s, "\n", "\r\n")
	return mta.Content{Size: int64(len(s)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }}
}

const plainMail = "From: Alice <alice@good.example>\nTo: bob@example.org\nDate: Mon, 23 Nov 2026 10:00:00 +0000\nSubject: hello\nMessage-ID: <1@good.example>\n\nhello\n"

// rcpt is what a recipient is told: "taken" or the reply.
func rcpt(t testing.TB, p *stand, env *mta.Envelope, to string) string {
	t.Helper()
	r, err := p.Recipient(t.Context(), env, path(t, to))
	if reply, ok := errors.AsType[*mta.Reply](err); ok {
		return reply.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	env.Rcpts = append(env.Rcpts, r)
	return "taken"
}

func TestPlainMailIsTakenAsItIs(t *testing.T) {
	p := judgeWith(t, world(), nil)
	for _, env := range []*mta.Envelope{
		good(t),
		greeted(t, "192.0.2.10", "mail.good.example", ""), // a report
		greeted(t, "192.0.2.10", "[192.0.2.10]", "alice@onlya.example"),
		greeted(t, "198.51.100.7", "mx1.example.org", "carol@example.org"), // of the domain's own servers
		greeted(t, "127.0.0.1", "localhost", "root@no.such.domain.example"),
	} {
		if env.Peer.Addr.Addr() == netip.MustParseAddr("198.51.100.7") {
			env.Peer.Name = "out.example.org"
		}
		env.Verdict = p.Sender(t.Context(), env)
		if got := rcpt(t, p, env, "bob@example.org"); got != "taken" {
			t.Errorf("%v: %s", env.Peer, got)
			continue
		}
		mail := plainMail
		if env.From.Domain == "example.org" {
			mail = strings.ReplaceAll(plainMail, "good.example", "example.org")
		}
		v, edit, err := p.Content(t.Context(), env, mailOf(mail))
		if err != nil || v.Action != mta.Accept || len(edit.Drop) > 0 || strings.Contains(edit.Above, markField) {
			t.Errorf("%s from %v: %v %v %+v (%v)", env.From, env.Peer.Addr, v.Action, names(v.Findings), edit, err)
		}
		if !strings.HasPrefix(edit.Above, "Authentication-Results: mx2.example.net") {
			t.Errorf("above stands %q", edit.Above)
		}
	}
}

func TestWhatIsKnownBeforeContent(t *testing.T) {
	p := judgeWith(t, world(), func(c *Config, _ map[string]Domain) {
		c.Judge.DNSLists = []string{"bl.example*4", "wl.example*-3", "broken.example*100"}
	})
	tests := []struct {
		name string
		env  *mta.Envelope
		want string
	}{
		{"a good client is vouched for", good(t), "dnswl:wl.example"},
		{"a bad one", greeted(t, "192.0.2.66", "spam", "x@no.such.example"), "helo:not-fqdn rdns:unconfirmed dnsbl:bl.example sender:no-domain"},
		{"no reverse name", greeted(t, "192.0.2.1", "a.example", "alice@onlya.example"), "rdns:none"},
		{"trouble with the reverse name", greeted(t, "192.0.2.67", "a.example", "alice@onlya.example"), ""},
		{"trouble with the name it leads to", greeted(t, "192.0.2.68", "a.example", "alice@onlya.example"), ""},
		{"SPF fails", greeted(t, "192.0.2.67", "a.example", "alice@good.example"), "spf:fail"},
		{"SPF of the HELO name fails", greeted(t, "192.0.2.67", "mail.good.example", "alice@onlya.example"), "spf-helo:fail"},
		{"null MX", greeted(t, "192.0.2.67", "a.example", "alice@nullmx.example"), "sender:null-mx"},
		{"neither MX nor address", greeted(t, "192.0.2.67", "a.example", "alice@onlytxt.example"), "sender:no-domain"},
		{"an MX that is none, and no address", greeted(t, "192.0.2.67", "a.example", "alice@badmx.example"), "sender:no-domain"},
		{"the sender's DNS is in trouble", greeted(t, "192.0.2.67", "a.example", "alice@servfail.example"), "sender:unresolved"},
		{"an address in place of a domain", greeted(t, "192.0.2.67", "a.example", "alice@[192.0.2.67]"), "sender:literal"},
		{"a forged sender of ours", greeted(t, "192.0.2.67", "a.example", "boss@example.org"), "spf:fail spoof:own-domain"},
		{"the same, softly", greeted(t, "192.0.2.67", "a.example", "boss@soft.example"), "spf:softfail spoof:own-domain"},
		{"the same, without SPF", greeted(t, "192.0.2.67", "a.example", "boss@nospf.example"), "spoof:own-domain"},
		{"the same, when the DNS does not tell", greeted(t, "192.0.2.67", "a.example", "boss@troubled.example"), "spoof:unverified"},
		{"one of ours from an MX of the domain", greeted(t, "198.51.100.25", "a.example", "boss@nospf.example"), "rdns:none"},
		{"one of ours by SPF", greeted(t, "198.51.100.7", "a.example", "boss@soft.example"), "rdns:none"},
		{"greets with our domain", greeted(t, "192.0.2.67", "example.org", "alice@onlya.example"), "helo:our-domain spf-helo:fail"},
		{"greets with our domain, which SPF allows", greeted(t, "198.51.100.7", "example.org", "alice@onlya.example"), "rdns:none"},
		{"greets with our name", greeted(t, "192.0.2.67", "MX2.example.net.", "alice@onlya.example"), "helo:our-name"},
		{"a private address says nothing", greeted(t, "192.168.1.1", "mx2.example.net", "boss@example.org"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := p.Sender(t.Context(), tt.env)
			if got := names(v.Findings); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if v.Action != mta.Accept || v.Score != score(v.Findings) || v.At.IsZero() {
				t.Errorf("got %+v", v)
			}
			for _, f := range v.Findings {
				if f.Text == "" {
					t.Errorf("%s has no text", f.Name)
				}
			}
		})
	}
}

func TestARecipientsDomainDecides(t *testing.T) {
	p := judgeWith(t, world(), func(c *Config, d map[string]Domain) {
		c.Judge.DNSLists, c.Judge.Greylist.MaxEntries = []string{"bl.example*6"}, 0
		d["lenient.example"] = Domain{AcceptAll: true, Judge: Rules{Reject: 50, Weights: map[string]float64{"sender:no-domain": 2}}}
		d["strict.test"] = Domain{AcceptAll: true, Judge: Rules{Reject: 3}}
		d["later.example"] = Domain{AcceptAll: true, Judge: Rules{Defer: 5, Reject: -1, Stages: []string{stageLists}}}
		d["blind.example"] = Domain{AcceptAll: true, Judge: Rules{Stages: []string{stageFilters}}}
	})
	listed := greeted(t, "192.0.2.66", "spam", "x@onlya.example") // 6 + 1 + 1
	nobody := greeted(t, "192.0.2.67", "a.example", "x@no.such.example")
	forged := greeted(t, "192.0.2.67", "a.example", "boss@example.org")
	unsure := greeted(t, "192.0.2.67", "a.example", "boss@nospf.example")
	later := greeted(t, "192.0.2.67", "a.example", "x@servfail.example")
	nullmx := greeted(t, "192.0.2.67", "a.example", "x@nullmx.example")
	tests := []struct {
		env  *mta.Envelope
		to   string
		want string
	}{
		{listed, "bob@example.org", "550 5.7.1 the client 192.0.2.66 is listed by bl.example"},
		{listed, "postmaster@example.org", "taken"},
		{listed, "bob@strict.test", "550 5.7.1 the client 192.0.2.66 is listed by bl.example"},
		{listed, "bob@later.example", "451 4.7.1 the client 192.0.2.66 is listed by bl.example"},
		{listed, "bob@blind.example", "taken"},
		{nobody, "bob@example.org", "550 5.1.8 the domain of the reverse-path can't receive mail: it has neither MX nor address"},
		{nobody, "bob@lenient.example", "taken"},
		{nobody, "POSTMASTER@example.org", "taken"},
		{forged, "bob@example.org", "550 5.7.1 mail from this domain is taken from its own servers only"},
		{unsure, "bob@example.org", "taken"}, // a signature may yet prove it
		{later, "bob@example.org", "451 4.1.8 the DNS does not tell now whether the domain of the reverse-path exists"},
		{nullmx, "bob@example.org", "550 5.7.27 the domain of the reverse-path takes no mail (null MX)"},
	}
	for _, tt := range tests {
		env := *tt.env
		env.Verdict = p.Sender(t.Context(), &env)
		if got := rcpt(t, p, &env, tt.to); got != tt.want {
			t.Errorf("%s to %s: got %q, want %q (%s)", env.From, tt.to, got, tt.want, names(env.Verdict.Findings))
		}
	}
	if !strings.Contains(p.log.String(), "msg=judged step=rcpt") {
		t.Errorf("the log says %s", p.log)
	}
}

func TestOneTransactionHasOneSetOfRules(t *testing.T) {
	p := judgeWith(t, world(), func(_ *Config, d map[string]Domain) {
		d["other.example"] = Domain{AcceptAll: true, Judge: Rules{Mark: 1}}
	})
	env := good(t)
	for to, want := range map[string]string{"bob@example.org": "taken"} {
		if got := rcpt(t, p, env, to); got != want {
			t.Errorf("%s: %s", to, got)
		}
	}
	for to, want := range map[string]string{
		"bob@soft.example":         "taken", // no rules of its own
		"bob@other.example":        "452 4.5.3 this recipient needs a message of its own, please send it another copy",
		"postmaster@other.example": "452 4.5.3 this recipient needs a message of its own, please send it another copy",
	} {
		if got := rcpt(t, p, env, to); got != want {
			t.Errorf("%s: %s", to, got)
		}
	}
}

func TestTheSenderIsJudgedOnceForAllRecipients(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := greeted(t, "192.0.2.66", "spam.example", "x@onlya.example")
	env.Verdict = p.Sender(t.Context(), env)
	asked := func() int { return p.dns.Over("udp") + p.dns.Over("tcp") }
	before := asked()
	for i := range 50 {
		rcpt(t, p, env, fmt.Sprintf("u%d@example.org", i))
	}
	if n := asked() - before; n > 0 {
		t.Errorf("50 recipients cost %d questions", n)
	}
}

func TestContentIsJudged(t *testing.T) {
	p := judgeWith(t, world(), func(c *Config, _ map[string]Domain) { c.Judge.Greylist.MaxEntries = 0 })
	tests := []struct {
		name, sender, mail string
		action             mta.Action
		finding            string
	}{
		{"DMARC reject", "x@onlya.example", strings.ReplaceAll(plainMail, "good.example", "strict.example"), mta.Reject, "dmarc:reject"},
		{"DMARC quarantine", "x@onlya.example", strings.ReplaceAll(plainMail, "good.example", "held.example"), mta.Mark, "dmarc:quarantine"},
		{"SPF fail alone", "alice@good.example", plainMail, mta.Mark, "spf:fail"},
		{"no From", "x@onlya.example", "Subject: x\nDate: Mon, 23 Nov 2026 10:00:00 +0000\n\nx\n", mta.Mark, "header:no-from"},
		{"a forged sender that no signature proves", "boss@nospf.example", plainMail, mta.Reject, "spoof:own-domain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env := greeted(t, "192.0.2.67", "a.example", tt.sender)
			env.Verdict = p.Sender(t.Context(), env)
			if got := rcpt(t, p, env, "bob@example.org"); got != "taken" {
				t.Fatal(got)
			}
			v, edit, err := p.Content(t.Context(), env, mailOf(tt.mail))
			if err != nil || v.Action != tt.action || !strings.Contains(names(v.Findings), tt.finding) {
				t.Errorf("%v %s (%v)", v.Action, names(v.Findings), err)
			}
			if (v.Reply() != nil) != (tt.action == mta.Reject) {
				t.Errorf("it is told %v", v.Reply())
			}
			if marked := strings.Contains(edit.Above, markField+": "+tt.action.String()+"; score="); marked != (tt.action != mta.Reject) {
				t.Errorf("above stands %q", edit.Above)
			}
			if !strings.Contains(p.log.String(), "msg=judged step=content id="+env.ID.String()) {
				t.Errorf("the log says %s", p.log)
			}
			nobody := *env
			nobody.Verdict = nil // the primary went away, and Sender was never asked
			if again, _, err := p.Content(t.Context(), &nobody, mailOf(tt.mail)); err != nil || names(again.Findings) != names(v.Findings) {
				t.Errorf("without Sender: %s, %v", names(again.Findings), err)
			}
			if o, err := p.opinion(t.Context(), env, mailOf(tt.mail)); err != nil || o.Action != v.Action || o.Score != v.Score {
				t.Errorf("an opinion beside the primary differs: %v (%v)", o, err)
			}
		})
	}
}

func TestDMARCDoesNotFailForWhatAHiddenClientMightProve(t *testing.T) {
	p := judgeWith(t, world(), nil)
	for _, tt := range []struct {
		name, client, sender string
		want                 mta.Action
	}{
		{"SPF might have passed", "192.168.1.1", "x@strict.example", mta.Accept},
		{"SPF could not have helped", "192.168.1.1", "x@onlya.example", mta.Reject},
		{"the client is known", "192.0.2.67", "x@strict.example", mta.Reject},
	} {
		env := greeted(t, tt.client, "a.example", tt.sender)
		env.Verdict = p.Sender(t.Context(), env)
		env.Rcpts = []mta.Recipient{{Addr: path(t, "bob@example.org"), Dest: "example.org"}}
		v, edit, err := p.Content(t.Context(), env, mailOf(strings.ReplaceAll(plainMail, "good.example", "strict.example")))
		if err != nil || v.Action != tt.want {
			t.Errorf("%s: %v %s (%v)", tt.name, v.Action, names(v.Findings), err)
		}
		if hidden := tt.client == "192.168.1.1"; hidden == strings.Contains(edit.Above, "spf=") {
			t.Errorf("%s: above stands %q", tt.name, edit.Above)
		}
	}
}

func TestASignatureProvesASenderOfOurOwnDomains(t *testing.T) {
	for _, tt := range []struct {
		name, sender, by string
		key              string // in place of the right one
		want             mta.Action
		reply            string
	}{
		{"signed by the domain", "boss@nospf.example", "nospf.example", "", mta.Accept, ""},
		{"SPF is soft", "boss@soft.example", "soft.example", "", mta.Accept, ""},
		{"signed by another", "boss@nospf.example", "good.example", "", mta.Reject, "550 5.7.1"},
		{"the key is another", "boss@nospf.example", "nospf.example", `TXT "v=DKIM1; k=ed25519; p=AAAA"`, mta.Reject, "550 5.7.1"},
		{"the key can't be had now", "boss@nospf.example", "nospf.example", "SERVFAIL", mta.Defer, "451 4.7.24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mail, key := sign(t, strings.ReplaceAll(plainMail, "alice@good.example", tt.sender), tt.by)
			z := world()
			z["s._domainkey."+tt.by] = []string{cmp.Or(tt.key, key)}
			p := judgeWith(t, z, func(c *Config, _ map[string]Domain) { c.Judge.Weights = map[string]float64{"dkim:": 0} })
			env := greeted(t, "192.0.2.67", "a.example", tt.sender)
			env.Verdict = p.Sender(t.Context(), env)
			if got := rcpt(t, p, env, "bob@example.org"); got != "taken" {
				t.Fatal(got)
			}
			v, _, err := p.Content(t.Context(), env, mailOf(mail))
			if err != nil || v.Action != tt.want {
				t.Errorf("%v %s %+v (%v)", v.Action, names(v.Findings), v.Auth, err)
			}
			if r := v.Reply(); (r != nil) != (tt.reply != "") || r != nil && !strings.HasPrefix(r.String(), tt.reply) {
				t.Errorf("it is told %v", r)
			}
		})
	}
	p := judgeWith(t, world(), nil)
	env := greeted(t, "192.0.2.67", "a.example", "boss@example.org") // SPF says no, whatever a signature says
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); !strings.HasPrefix(got, "550 5.7.1") {
		t.Error(got)
	}
}

func TestMailToPostmasterAloneIsNotRefusedByItsScore(t *testing.T) {
	p := judgeWith(t, world(), func(c *Config, _ map[string]Domain) { c.Judge.DNSLists = []string{"bl.example*20"} })
	judged := func(mail string, to ...string) mta.Action {
		t.Helper()
		env := greeted(t, "192.0.2.66", "spam.example", "x@no.such.example")
		env.Verdict = p.Sender(t.Context(), env)
		for _, a := range to {
			env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: path(t, a), Dest: "example.org"})
		}
		v, _, err := p.Content(t.Context(), env, mailOf(mail))
		if err != nil {
			t.Fatal(err)
		}
		return v.Action
	}
	if got := judged(plainMail, "postmaster@example.org"); got != mta.Mark {
		t.Errorf("postmaster: %v", got)
	}
	if got := judged(plainMail, "postmaster@example.org", "bob@example.org"); got != mta.Reject {
		t.Errorf("postmaster beside another: %v", got)
	}
	if got := judged(strings.ReplaceAll(plainMail, "good.example", "strict.example"), "postmaster@example.org"); got != mta.Reject {
		t.Errorf("a forgery by DMARC: %v", got)
	}
}

func TestForgedFieldsAreLeftOutOnEveryRoad(t *testing.T) {
	r, _ := resolving(t, world())
	cfg := DefaultConfig()
	cfg.Hostname = "mx2.example.net"
	p, err := New(cfg, map[string]Domain{"example.org": {AcceptAll: true}}, Deps{
		Log: slog.New(slog.DiscardHandler), Resolver: r,
		PrimaryNames: func(domain string) []string { return []string{"mx1.hoster.example"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	forged := "Authentication-Results: mx2.example.net; spf=pass\nauthentication-results: (x) \"MX1.hoster.example\"; dkim=pass\n" +
		"Authentication-Results: example.org; dmarc=pass\nX-Spam-Status: No\nX-Understudy-Verdict: accept\n"
	kept := "Authentication-Results: other.example; spf=pass\n"
	env := good(t)
	env.Rcpts = []mta.Recipient{{Addr: path(t, "bob@example.org"), Dest: "example.org"}}
	clean, err := p.Clean(env, mailOf(forged+kept+plainMail))
	if err != nil || clean.Above != "" {
		t.Fatal(clean, err)
	}
	_, edit, err := p.Content(t.Context(), env, mailOf(forged+kept+plainMail))
	if err != nil || !slices.Equal(edit.Drop, clean.Drop) {
		t.Errorf("spooled %v, inline %v (%v)", edit.Drop, clean.Drop, err)
	}
	f, err := clean.Apply("", mailOf(forged+kept+plainMail)).Open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if want := strings.ReplaceAll(kept+plainMail, "\n", "\r\n"); err != nil || string(b) != want {
		t.Errorf("left is %q (%v)", b, err)
	}
}

// closed is an address where nobody listens.
const closed = "127.0.0.1:1"

func TestAFilterThatIsAwayDefersOrMarks(t *testing.T) {
	scanner := filter.Config{Kind: filter.Clamd, Address: closed}
	spam := filter.Config{Kind: filter.Rspamd, Address: closed}
	tests := []struct {
		name    string
		filters []filter.Config
		rules   Rules
		want    mta.Action
	}{
		{"rspamd", []filter.Config{spam}, Rules{}, mta.Defer},
		{"rspamd, and the domain takes and marks", []filter.Config{spam}, Rules{AcceptAndMark: true}, mta.Mark},
		{"a virus scanner", []filter.Config{scanner}, Rules{}, mta.Defer},
		{"a virus scanner always defers", []filter.Config{scanner, spam}, Rules{AcceptAndMark: true}, mta.Defer},
		{"the domain does not use it", []filter.Config{scanner, spam}, Rules{Filters: []string{"rspamd"}, AcceptAndMark: true}, mta.Mark},
		{"nor any", []filter.Config{scanner, spam}, Rules{Stages: []string{stageClient}}, mta.Accept},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := judgeWith(t, world(), func(c *Config, d map[string]Domain) {
				c.Filters = tt.filters
				d["example.org"] = Domain{AcceptAll: true, Judge: tt.rules}
			})
			env := good(t)
			env.Verdict = p.Sender(t.Context(), env)
			rcpt(t, p, env, "bob@example.org")
			v, _, err := p.Content(t.Context(), env, mailOf(plainMail))
			if err != nil || v.Action != tt.want {
				t.Errorf("%v %s (%v)", v.Action, names(v.Findings), err)
			}
			if r := v.Reply(); tt.want == mta.Defer && (r == nil || r.Code != 451) {
				t.Errorf("it is told %v", r)
			}
			env.Verdict = &v
			if h, err := p.Hindsight(t.Context(), env, mailOf(plainMail)); err != nil || h.Action >= mta.Quarantine {
				t.Errorf("hindsight holds it: %+v (%v)", h, err)
			}
		})
	}
}

func TestHindsightKnowsWhatTheListsKnowByThen(t *testing.T) {
	z := world()
	p := judgeWith(t, z, func(c *Config, _ map[string]Domain) { c.Judge.DNSLists = []string{"bl.example*9"} })
	judge := func(client, sender string) (*mta.Envelope, mta.Action) {
		t.Helper()
		env := greeted(t, client, "a.example", sender)
		env.Verdict = p.Sender(t.Context(), env)
		rcpt(t, p, env, "bob@example.org")
		v, _, err := p.Content(t.Context(), env, mailOf(plainMail))
		if err != nil {
			t.Fatal(err)
		}
		env.Verdict = &v
		return env, v.Action
	}
	clean, action := judge("192.0.2.77", "x@onlya.example")
	if action > mta.Mark {
		t.Fatal(action)
	}
	if v, err := p.Hindsight(t.Context(), clean, mailOf(plainMail)); err != nil || v.Action > mta.Mark || v.Auth.SPF != clean.Verdict.Auth.SPF {
		t.Errorf("nothing is new, and yet %+v (%v)", v, err)
	}
	fresh, _ := judge("192.0.2.78", "x@onlya.example")
	// The answer of a moment ago is still kept, so the list learns of a client that nobody asked for.
	fresh.Peer.Addr = netip.MustParseAddrPort("192.0.2.79:40000")
	p.dns.Set("79.2.0.192.bl.example", "A 127.0.0.2")
	v, err := p.Hindsight(t.Context(), fresh, mailOf(plainMail))
	if err != nil || v.Action != mta.Quarantine || v.Decider().Name != "dnsbl:bl.example" {
		t.Errorf("got %+v (%v)", v, err)
	}
	unjudged := greeted(t, "192.0.2.66", "a.example", "x@onlya.example")
	unjudged.Rcpts = fresh.Rcpts
	if v, err := p.Hindsight(t.Context(), unjudged, mailOf(plainMail)); err != nil || v.Action != mta.Quarantine {
		t.Errorf("never judged before: %+v (%v)", v, err)
	}
	if unjudged.Verdict != nil || strings.Contains(names(fresh.Verdict.Findings), "dnsbl") {
		t.Error("hindsight changed what was said at receipt")
	}
}

func TestTroubleOfTheDNSNeverRefusesForGood(t *testing.T) {
	for _, fault := range []string{"SERVFAIL", "REFUSED", "TIMEOUT"} {
		t.Run(fault, func(t *testing.T) {
			z := world()
			for name := range z {
				z[name] = []string{fault}
			}
			for _, name := range []string{"_dmarc.good.example", "example", "org"} {
				z[name] = []string{fault}
			}
			p := judgeWith(t, z, func(c *Config, _ map[string]Domain) {
				c.Judge.DNSLists, c.Judge.DNSListsWait = []string{"bl.example*9", "wl.example*-9"}, 200*time.Millisecond
				c.Judge.Weights = map[string]float64{"sender:unresolved": 0}
			})
			for _, sender := range []string{"alice@good.example", "boss@example.org", "", "x@strict.example"} {
				env := greeted(t, "192.0.2.66", "a.example", sender)
				env.Verdict = p.Sender(t.Context(), env)
				if got := rcpt(t, p, env, "bob@example.org"); strings.HasPrefix(got, "5") {
					t.Errorf("%s: %s (%s)", sender, got, names(env.Verdict.Findings))
				}
				env.Rcpts = []mta.Recipient{{Addr: path(t, "bob@example.org"), Dest: "example.org"}}
				v, _, err := p.Content(t.Context(), env, mailOf(plainMail))
				if err != nil || v.Action == mta.Reject || v.Action == mta.Quarantine {
					t.Errorf("%s: %v %s (%v)", sender, v.Action, names(v.Findings), err)
				}
			}
		})
	}
}

func TestAReloadChangesTheRules(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := greeted(t, "192.0.2.66", "spam", "x@onlya.example")
	env.Verdict = p.Sender(t.Context(), env)
	if strings.Contains(names(env.Verdict.Findings), "dnsbl") || len(p.Lists()) > 0 || p.HindsightAfter() != 15*time.Minute {
		t.Fatal("there are lists by default")
	}
	cfg := DefaultConfig()
	cfg.Hostname, cfg.Judge.DNSLists, cfg.HindsightAfter = "mx2.example.net", []string{"bl.example*9"}, 0
	if err := p.Reload(t.Context(), cfg, map[string]Domain{"example.org": {AcceptAll: true}}); err != nil {
		t.Fatal(err)
	}
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); !strings.HasPrefix(got, "550 5.7.1") {
		t.Errorf("got %s", got)
	}
	gathered := prometheus.NewPedanticRegistry()
	if err := gathered.Register(newAges(p.Policy)); err != nil {
		t.Fatal(err)
	}
	if err := testutil.GatherAndCompare(gathered, strings.NewReader("# HELP understudy_policy_dns_list_alive Whether a DNS list is asked about clients: it passed its last test.\n# TYPE understudy_policy_dns_list_alive gauge\nunderstudy_policy_dns_list_alive{list=\"bl.example\"} 1\n"), "understudy_policy_dns_list_alive"); err != nil {
		t.Error(err)
	}
	if l := p.Lists(); len(l) != 1 || l[0].List != "bl.example" || p.HindsightAfter() != 0 {
		t.Errorf("lists %+v", l)
	}
	cfg.Judge.DNSLists = []string{"bl example"}
	if err := p.Reload(t.Context(), cfg, map[string]Domain{"example.org": {AcceptAll: true}}); err == nil || len(p.Lists()) != 1 {
		t.Errorf("a bad reload: %v", err)
	}
}
