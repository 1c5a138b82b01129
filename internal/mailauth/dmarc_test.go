package mailauth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

// asked notes the names of TXT questions.
type asked struct {
	Resolver
	names []string
}

func (a *asked) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a.names = append(a.names, name)
	return a.Resolver.LookupTXT(ctx, name)
}

func newDiscovery(t testing.TB, r Resolver, method OrganizationalDomain) *discovery {
	return &discovery{ctx: t.Context(), resolver: r, method: method, asked: map[string]answer{}}
}

func dmarcZones(records map[string]string) dnstest.Zones {
	z := dnstest.Zones{"com": {"A 192.0.2.1"}, "example.com": {"A 192.0.2.1"}}
	for name, txt := range records {
		switch txt {
		case "SERVFAIL":
			z["_dmarc."+name] = []string{txt}
		default:
			var lines []string
			for l := range strings.SplitSeq(txt, "\n") {
				lines = append(lines, `TXT "`+l+`"`)
			}
			z["_dmarc."+name] = lines
		}
	}
	return z
}

// The queries that RFC 9989, 4.10 and 5.1.8 list.
func TestTheTreeWalkAsksAtMostEightNames(t *testing.T) {
	tests := map[string][]string{
		"a.b.c.d.e.f.g.h.i.j.mail.example.com": {
			"a.b.c.d.e.f.g.h.i.j.mail.example.com", "g.h.i.j.mail.example.com", "h.i.j.mail.example.com", "i.j.mail.example.com",
			"j.mail.example.com", "mail.example.com", "example.com", "com",
		},
		"mail.a.b.c.d.e.f.g.example.com": {
			"mail.a.b.c.d.e.f.g.example.com", "c.d.e.f.g.example.com", "d.e.f.g.example.com", "e.f.g.example.com",
			"f.g.example.com", "g.example.com", "example.com", "com",
		},
		"a.b.c.d.e.f.example.com": {
			"a.b.c.d.e.f.example.com", "b.c.d.e.f.example.com", "c.d.e.f.example.com", "d.e.f.example.com", "e.f.example.com",
			"f.example.com", "example.com", "com",
		},
		"a.mail.example.com": {"a.mail.example.com", "mail.example.com", "example.com", "com"},
		"com":                {"com"},
	}
	for domain, want := range tests {
		r := &asked{Resolver: memory(t, dmarcZones(nil))}
		if org, _, err := newDiscovery(t, r, Walk).organizational(domain); err != nil || org != domain {
			t.Errorf("%s: got %s, %v", domain, org, err)
		}
		for i := range want {
			want[i] = "_dmarc." + want[i]
		}
		if !slices.Equal(r.names, want) {
			t.Errorf("%s: asked %q, want %q", domain, r.names, want)
		}
	}
}

// The examples of RFC 9989, 4.10.2, and their neighbours.
func TestTheOrganizationalDomainIsFound(t *testing.T) {
	tests := []struct {
		name    string
		records map[string]string
		domain  string
		want    string
	}{
		{"the record with the fewest labels", map[string]string{"mail.example.com": "v=DMARC1", "example.com": "v=DMARC1"}, "a.mail.example.com", "example.com"},
		{"psd=n ends the walk", map[string]string{"mail.example.com": "v=DMARC1; psd=n", "example.com": "v=DMARC1"}, "a.mail.example.com", "mail.example.com"},
		{"one below psd=y", map[string]string{"com": "v=DMARC1; psd=y"}, "a.mail.example.com", "example.com"},
		{"one below psd=y in the middle", map[string]string{"example.com": "v=DMARC1; psd=y"}, "mail.example.com", "mail.example.com"},
		{"one below psd=y, whatever has a record", map[string]string{"a.mail.example.com": "v=DMARC1", "com": "v=DMARC1;psd=y"}, "a.mail.example.com", "example.com"},
		{"psd=y at the beginning counts for itself", map[string]string{"com": "v=DMARC1; psd=y"}, "com", "com"},
		{"psd=y at the beginning, others above", map[string]string{"example.com": "v=DMARC1; psd=y", "com": "v=DMARC1"}, "example.com", "example.com"},
		{"nothing", nil, "a.mail.example.com", "a.mail.example.com"},
		{"two records count as none", map[string]string{"example.com": "v=DMARC1\nv=DMARC1; p=none"}, "mail.example.com", "mail.example.com"},
		{"what is no DMARC record is not seen", map[string]string{"example.com": "v=spf1 -all\nv=DMARC1; p=none\nv=dmarc1"}, "mail.example.com", "example.com"},
		{"below a leap", map[string]string{"f.g.example.com": "v=DMARC1; psd=y"}, "a.b.c.d.e.f.g.example.com", "e.f.g.example.com"},
		{"below a leap, a name that was not asked", map[string]string{"c.d.e.f.g.example.com": "v=DMARC1; psd=y"}, "x.a.b.c.d.e.f.g.example.com", "b.c.d.e.f.g.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := newDiscovery(t, memory(t, dmarcZones(tt.records)), Walk).organizational(tt.domain)
			if err != nil || got != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
	for domain, want := range map[string]string{"a.b.example.co.uk": "example.co.uk", "co.uk": "co.uk", "a.example.com": "example.com", "com": "com"} {
		if got, _, err := newDiscovery(t, memory(t, nil), PublicSuffix).organizational(domain); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", domain, got, err, want)
		}
	}
}

func TestDMARCRecordsAreReadAsTheRFCSays(t *testing.T) {
	base := record{psd: 'u'}
	with := func(change func(*record)) *record { r := base; change(&r); return &r }
	tests := []struct {
		txt  string
		want *record // nil: no record
	}{
		{"v=DMARC1", &base},
		{"v=DMARC1;", &base},
		{" v = DMARC1 ; p = reject ; ", with(func(r *record) { r.p = "reject" })},
		{"v=DMARC1;p=Reject", with(func(r *record) { r.p = "reject" })},
		{"v=DMARC1; p=reject; p=none", with(func(r *record) { r.p = "reject" })},
		{"v=DMARC1; p=reject; pct=0; ri=1; rf=afrf; x=y; =; ;", with(func(r *record) { r.p = "reject" })},
		{"v=DMARC1; sp=quarantine; np=reject; psd=N; t=y; adkim=s; aspf=s", with(func(r *record) {
			r.sp, r.np, r.psd, r.test, r.strictDKIM, r.strictSPF = "quarantine", "reject", 'n', true, true, true
		})},
		{"v=DMARC1; adkim=x; aspf=; t=1; psd=maybe", &base},
		{"v=DMARC1; p=refuse", with(func(r *record) { r.bad = true })},
		{"v=DMARC1; p=refuse; rua=mailto:a@example.com", with(func(r *record) { r.bad, r.wantsReport = true, true })},
		{"v=DMARC1; rua=nobody", &base},
		{"v=DMARC2; p=reject", nil},
		{"v=dmarc1; p=reject", nil},
		{"p=reject; v=DMARC1", nil},
		{"v=DMARC1 p=reject", nil},
		{"", nil},
	}
	for _, tt := range tests {
		got, ok := parseRecord(tt.txt)
		if ok != (tt.want != nil) || ok && *got != *tt.want {
			t.Errorf("%q: got %+v, want %+v", tt.txt, got, tt.want)
		}
	}
}

func TestDMARC(t *testing.T) {
	spf := func(d string) mta.Auth { return mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: d}} }
	dkim := func(results ...string) (a mta.Auth) {
		a.SPF.Result = "none"
		for _, r := range results {
			result, domain, _ := strings.Cut(r, " ")
			a.DKIM = append(a.DKIM, mta.AuthResult{Result: result, Domain: domain})
		}
		return a
	}
	none := mta.Auth{SPF: mta.AuthResult{Result: "none"}}
	reject := map[string]string{"example.com": "v=DMARC1; p=reject"}
	one := func(txt string) map[string]string { return map[string]string{"example.com": txt} }
	tests := []struct {
		name    string
		records map[string]string
		from    string
		auth    mta.Auth
		want    string // result, policy
		aligned bool
	}{
		{"SPF of the same domain", reject, "example.com", spf("example.com"), "pass reject", true},
		{"SPF of a subdomain", reject, "example.com", spf("bounce.example.com"), "pass reject", true},
		{"SPF of the parent", reject, "news.example.com", spf("example.com"), "pass reject", true},
		{"SPF of a sister", reject, "news.example.com", spf("foo.example.com"), "pass reject", true},
		{"SPF of a stranger", reject, "example.com", spf("example.net"), "fail reject", false},
		{"a name that only looks alike", reject, "example.com", spf("badexample.com"), "fail reject", false},
		{"a signature", reject, "example.com", dkim("pass example.com"), "pass reject", true},
		{"the second signature", reject, "example.com", dkim("pass example.net", "fail example.com", "pass a.example.com"), "pass reject", true},
		{"a broken signature", reject, "example.com", dkim("fail example.com"), "fail reject", false},
		{"a signature with a length", reject, "example.com", dkim("policy example.com"), "fail reject", false},
		{"nothing", reject, "example.com", none, "fail reject", false},
		{"nobody looked at SPF", reject, "example.com", mta.Auth{}, "temperror SPF was not looked at", false},
		{"nobody looked at SPF, and no signature is enough", reject, "example.com", mta.Auth{DKIM: dkim("pass example.net").DKIM}, "temperror SPF was not looked at", false},
		{"nobody looked at SPF, but a signature is enough", reject, "example.com", mta.Auth{DKIM: dkim("pass a.example.com").DKIM}, "pass reject", true},
		{"quarantine", one("v=DMARC1; p=quarantine"), "example.com", none, "fail quarantine", false},
		{"none", one("v=DMARC1; p=none"), "example.com", none, "fail none", false},
		{"no p", one("v=DMARC1"), "example.com", none, "fail none", false},
		{"a p that there is not", one("v=DMARC1; p=refuse"), "example.com", none, "permerror the record names no policy", false},
		{"a p that there is not, and reports", one("v=DMARC1; p=refuse; rua=mailto:a@example.com"), "example.com", none, "fail none", false},
		{"a test of reject", one("v=DMARC1; p=reject; t=y"), "example.com", none, "fail quarantine", false},
		{"a test of quarantine", one("v=DMARC1; p=quarantine; t=y"), "example.com", none, "fail none", false},
		{"pct means nothing", one("v=DMARC1; p=reject; pct=0"), "example.com", none, "fail reject", false},
		{"strict SPF", one("v=DMARC1; p=reject; aspf=s"), "example.com", spf("a.example.com"), "fail reject", false},
		{"strict SPF, the same", one("v=DMARC1; p=reject; aspf=s"), "example.com", spf("example.com"), "pass reject", true},
		{"strict SPF, relaxed DKIM", one("v=DMARC1; p=reject; aspf=s"), "example.com", dkim("pass a.example.com"), "pass reject", true},
		{"strict both", one("v=DMARC1; p=reject; aspf=s; adkim=s"), "example.com", dkim("pass a.example.com"), "fail reject", false},
		{"sp for what exists", one("v=DMARC1; p=reject; sp=none; np=quarantine"), "there.example.com", none, "fail none", false},
		{"np for what does not", one("v=DMARC1; p=reject; sp=none; np=quarantine"), "gone.example.com", none, "fail quarantine", false},
		{"np without sp for what exists", one("v=DMARC1; p=none; np=reject"), "there.example.com", none, "fail none", false},
		{"sp without np for what does not", one("v=DMARC1; p=none; sp=reject"), "gone.example.com", none, "fail reject", false},
		{"sp means nothing to the domain itself", one("v=DMARC1; p=none; sp=reject; np=reject"), "example.com", none, "fail none", false},
		{"the author's own record goes first", map[string]string{"example.com": "v=DMARC1; p=reject", "a.example.com": "v=DMARC1; p=none"}, "a.example.com", none, "fail none", false},
		{"and its organizational domain is above all the same", map[string]string{"example.com": "v=DMARC1; p=reject", "a.example.com": "v=DMARC1; p=none"}, "a.example.com", spf("b.example.com"), "pass none", true},
		{"psd=n parts them", map[string]string{"example.com": "v=DMARC1; p=reject", "a.example.com": "v=DMARC1; p=reject; psd=n"}, "a.example.com", spf("b.example.com"), "fail reject", false},
		{"psd=n parts the other", map[string]string{"example.com": "v=DMARC1; p=reject", "a.example.com": "v=DMARC1; p=reject; psd=n"}, "example.com", spf("x.a.example.com"), "fail reject", false},
		{"a public suffix domain's policy", map[string]string{"com": "v=DMARC1; p=none; np=reject; psd=y"}, "a.gone.com", none, "fail reject", false},
		{"a public suffix domain's policy, and alignment below it", map[string]string{"com": "v=DMARC1; p=reject; psd=y"}, "a.example.com", spf("b.example.com"), "pass reject", true},
		{"two domains of one public suffix", map[string]string{"com": "v=DMARC1; p=reject; psd=y"}, "example.com", spf("other.com"), "fail reject", false},
		{"an organization below a public suffix has its own", map[string]string{"com": "v=DMARC1; p=reject; psd=y", "example.com": "v=DMARC1; p=none"}, "a.example.com", none, "fail none", false},
		{"no record", nil, "example.com", spf("example.com"), "none", true},
		{"no record, a stranger", nil, "example.com", spf("example.net"), "none", false},
		{"no record, a subdomain", nil, "example.com", spf("a.example.com"), "none", false},
		{"no answer for the author", one("SERVFAIL"), "example.com", none, "temperror the policy can't be asked for now", false},
		{"no answer above the author", map[string]string{"a.example.com": "v=DMARC1; p=reject", "com": "SERVFAIL"}, "a.example.com", spf("b.example.com"), "temperror the DNS gave no answer", false},
		{"no answer above, where it does not matter", map[string]string{"a.example.com": "v=DMARC1; p=reject", "com": "SERVFAIL"}, "a.example.com", spf("a.example.com"), "pass reject", true},
		{"SPF might have passed", reject, "example.com", mta.Auth{SPF: mta.AuthResult{Result: "temperror", Domain: "example.com"}}, "temperror the DNS gave no answer", false},
		{"a signature might be valid", reject, "example.com", dkim("temperror a.example.com", "fail example.com"), "temperror the DNS gave no answer", false},
		{"a stranger's signature might be valid", reject, "example.com", dkim("temperror example.net"), "fail reject", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := dmarcZones(tt.records)
			z["there.example.com"] = []string{"MX 10 mx.example.com."}
			v := verifier(t, memory(t, z))
			got, aligned := v.authors(t.Context(), []string{tt.from}, tt.auth)
			if s := strings.TrimSpace(got.Result + " " + got.Reason); s != tt.want || got.Domain != tt.from || aligned != tt.aligned {
				t.Errorf("got %q of %s, aligned %v, want %q, %v", s, got.Domain, aligned, tt.want, tt.aligned)
			}
		})
	}
}

func TestThePublicSuffixListCanDecide(t *testing.T) {
	z := dmarcZones(map[string]string{"example.co.uk": "v=DMARC1; p=reject; sp=quarantine", "mail.example.co.uk": "v=DMARC1; p=none; psd=n"})
	cfg := DefaultConfig()
	cfg.OrganizationalDomain = PublicSuffix
	v, err := New(cfg, memory(t, z))
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"example.co.uk": "fail reject", "a.b.example.co.uk": "fail quarantine", "a.mail.example.co.uk": "fail quarantine", "co.uk": "none "} {
		if r, _ := v.authors(t.Context(), []string{from}, mta.Auth{SPF: mta.AuthResult{Result: "none"}}); r.Result+" "+r.Reason != want {
			t.Errorf("%s: got %+v, want %s", from, r, want)
		}
	}
	r, aligned := v.authors(t.Context(), []string{"a.example.co.uk"}, mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "b.example.co.uk"}})
	if r.Result != "pass" || !aligned {
		t.Errorf("got %+v", r)
	}
}

func TestOfSeveralAuthorsTheWorstCounts(t *testing.T) {
	v := verifier(t, memory(t, dmarcZones(map[string]string{"example.com": "v=DMARC1; p=reject", "example.net": "v=DMARC1; p=quarantine", "example.org": "SERVFAIL"})))
	spf := mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "example.info"}}
	for _, tt := range []struct {
		from    []string
		want    string
		aligned bool
	}{
		{nil, "none ", false},
		{[]string{"example.info"}, "none ", true},
		{[]string{"example.info", "example.com"}, "fail reject", false},
		{[]string{"example.com", "example.net"}, "fail reject", false},
		{[]string{"example.org", "example.net"}, "fail quarantine", false},
	} {
		if r, aligned := v.authors(t.Context(), tt.from, spf); r.Result+" "+r.Reason != tt.want || aligned != tt.aligned {
			t.Errorf("%q: got %+v %v, want %s", tt.from, r, aligned, tt.want)
		}
	}
}

func TestDMARCFindings(t *testing.T) {
	for reason, want := range map[string]string{"reject": "dmarc:reject reject", "quarantine": "dmarc:quarantine mark", "none": "dmarc:none-fail accept"} {
		f := dmarcFindings(mta.AuthResult{Result: "fail", Domain: "example.com", Reason: reason})
		if len(f) != 1 || fmt.Sprint(f[0].Name, " ", f[0].Action) != want {
			t.Errorf("%s: got %+v", reason, f)
		}
	}
	for _, r := range []string{"pass", "none", "temperror", "permerror", ""} {
		if f := dmarcFindings(mta.AuthResult{Result: r, Reason: "reject"}); len(f) != 0 {
			t.Errorf("%s: got %+v", r, f)
		}
	}
}

// A record is read without harm, and what it asks for is one of the three.
func FuzzParseRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=x; rua=mailto:a@b!10m,%zz")
	f.Fuzz(func(t *testing.T, txt string) {
		r, ok := parseRecord(txt)
		if !ok {
			return
		}
		p, _, err := r.asks("a.example.com", func() (bool, error) { return false, nil })
		if err != nil || !slices.Contains(policies, p) {
			t.Errorf("%q asks for %q, %v", txt, p, err)
		}
	})
}
